"""``--replicate fsdp``: what an optimizer keeps is shared out over the replicas, by fully_shard (FSDP2)."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Size, Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pipelocal.replicas.averaging import all_reduced_bytes, average_buffers
from pipelocal.replicas.carrier import Carrier
from pipelocal.stage import Stage
from pipelocal.transport.groups import ReplicaGroup


class FullyShard:
    """Optimizer state and the parameters that it steps are shared out over the replicas.

    Passes see whole parameters, which are gathered behind each update and not before each pass: replicas
    do not keep step with each other between two updates, as gathering layer by layer would ask for.

    Args:
        stage: already the same on all replicas; its optimizer's state is shared out too.
        group: the replicas.
    """

    def __init__(self, stage: Stage, group: ReplicaGroup) -> None:
        self._stage = stage
        self._group = group
        self.sent_bytes = 0
        self._carrier = Carrier(stage.body, stage.head)
        group.together(self._share_out)

    @property
    def count(self) -> int:
        return self._group.count

    @property
    def index(self) -> int:
        return self._group.index

    def average(self) -> None:
        # Gradients are reduced to their shares, and the parameters' shares gathered: each is half of it.
        self.sent_bytes += all_reduced_bytes(self._stage, self.count)
        self._group.together(self._average)

    def updated(self) -> None:
        self._group.together(self._gather)

    def each(self, values: Tensor) -> Tensor:
        return self._group.each(values)

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

    def _average(self) -> None:
        self._carrier().backward()
        self._carrier.reshard()  # type: ignore[operator]
        average_buffers(self._stage, self._group)

    def _gather_state(self, state: Any) -> Any:
        whole = _whole(state)
        self._gather()  # asking for a state dict lets the whole parameters go
        return whole

    def _gather(self) -> None:
        self._carrier.unshard()  # type: ignore[operator]


def _like(value: Any, parameter: nn.Parameter) -> Any:
    """A parameter's state, shared out as the parameter is; numbers such as a step count as they are."""
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
