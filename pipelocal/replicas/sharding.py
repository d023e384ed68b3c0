"""``--replicate fsdp``: shards optimizer state over the replicas, by fully_shard (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pipelocal.replicas.carrier import Carrier
from pipelocal.replicas.together import Alikeness, Together
from pipelocal.stage.replicas import Wait, Weight
from pipelocal.stage.stage import Stage
from pipelocal.transport.groups import ReplicaGroup

_NOTHING = torch.empty(0)
"""An input for the hook that moves inputs to a GPU, which fails without one before torch 2.13."""


class FullyShard(Together):
    """A replica with its shard of the optimizer state and of the parameters that it updates.

    Passes see whole parameters, which are gathered after each update and not before each pass: gathering
    layer by layer would require replicas to stay in step between updates, which they do not.

    Args:
        stage: already identical on all replicas; its optimizer's state is sharded too.
        group: the replicas.
        same_batches: see :class:`~pipelocal.replicas.together.Alikeness`.
    """

    def __init__(self, stage: Stage, group: ReplicaGroup, *, same_batches: bool = False) -> None:
        super().__init__(stage, group)
        self._alikeness = Alikeness(stage, group, self._trained, same_batches=same_batches)
        self._carrier = Carrier(stage.body, stage.head, stage.own_objective)
        group.together(self._share_out)

    def begin_average(self, weight: Weight) -> Wait[Weight]:
        # Reduce-scatter of gradients and all-gather of parameters are each half of an all-reduce.
        self.sent_bytes += self._all_reduced_bytes()
        return self._group.begin(partial(self._average, weight))

    def holding_gradients(self, parameters: Iterable[Tensor]) -> Iterable[Tensor]:  # noqa: ARG002
        # The optimizer has the shards, and passes see the whole parameters.
        return self._trained()

    def updated(self) -> None:
        self._group.together(self._gather)

    def whole(self, state: Any) -> Any:
        return self._group.together(partial(self._gather_state, state))

    def _share_out(self) -> None:
        optimizer = self._stage.optimizer
        names = {id(p): name for name, p in self._carrier.named_parameters()}
        old = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
        states = {name: optimizer.state.pop(p, {}) for name, p in old.items()}
        fully_shard(self._carrier, mesh=self._group.mesh, reshard_after_forward=False)
        self._carrier.set_reshard_after_backward(False)  # type: ignore[operator]
        new = dict(self._carrier.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [new[names[id(p)]] for p in group["params"]]
        for name, state in states.items():
            if state:
                optimizer.state[new[name]] = {k: _like(v, new[name]) for k, v in state.items()}
        self._carrier.unshard()  # type: ignore[operator]

    def _average(self, weight: Weight) -> Weight:
        finish = self._alikeness.begin(weight)
        self._carrier(_NOTHING).backward()
        self._carrier.reshard()  # type: ignore[operator]
        return finish()

    def _trained(self) -> list[nn.Parameter]:
        """Return the whole parameters or their shards, whichever are in place."""
        return [p for p in self._carrier.parameters() if p.requires_grad]

    def _gather_state(self, state: Any) -> Any:
        whole = _whole(state)
        self._gather()  # getting a state dict frees the whole parameters
        return whole

    def _gather(self) -> None:
        self._carrier.unshard()  # type: ignore[operator]


def _like(value: Any, parameter: nn.Parameter) -> Any:
    """Shard a parameter's state like the parameter; leave numbers such as a step count as they are."""
    assert isinstance(parameter, DTensor)
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


def _whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, Size):
        return type(value)(_whole(item) for item in value)
    return value
