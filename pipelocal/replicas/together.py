"""What all ways of averaging share: figures, and the averaging of buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelocal.stage.replicas import Wait, Weight
from pipelocal.stage.stage import Stage
from pipelocal.transport.groups import ReplicaGroup


class Together:
    """One of the replicas of a stage; see :class:`~pipelocal.stage.replicas.Replicas`.

    This base class is the replica of a stage that no longer trains.

    Args:
        stage: the stage, already identical on all replicas.
        group: the replicas.
    """

    def __init__(self, stage: Stage, group: ReplicaGroup) -> None:
        self._stage = stage
        self._group = group
        self.sent_bytes = 0

    @property
    def count(self) -> int:
        return self._group.count

    @property
    def index(self) -> int:
        return self._group.index

    @property
    def waited_s(self) -> float:
        return self._group.waited_s

    def begin_average(self, weight: Weight) -> Wait[Weight]:  # noqa: ARG002
        raise AssertionError("a frozen stage has nothing to average")

    def holding_gradients(self, parameters: Iterable[Tensor]) -> Iterable[Tensor]:
        return parameters

    def updated(self) -> None:
        pass

    def each(self, values: Tensor) -> Tensor:
        return self._group.each(values)

    def whole(self, state: Any) -> Any:
        return state

    def _all_reduced_bytes(self) -> int:
        """Return the bytes that each replica sends to average all gradients uncompressed."""
        parameters = (p for group in self._stage.optimizer.param_groups for p in group["params"])
        whole: int = sum(p.numel() * p.element_size() for p in parameters)
        return math.ceil(2 * (self.count - 1) * whole / self.count)


class Alikeness:
    """Makes replicas agree on buffers, weights, and on which parameters have a gradient at all.

    A floating-point or complex buffer, such as a running mean, changes by the mean of the replicas' changes
    since the last update; an integer buffer, such as a count of batches, by their sum, or by their mean if
    the replicas count the same batches; a bool buffer, such as a mask of what was seen, where any of them
    changed it. A buffer that no replica changed keeps its bits. Those of the loss count as those of modules.

    All of this is one transfer, concurrent with that of the gradients. On CUDA, where to read what it says
    makes the host wait, gradients are taken to be there for good after the first update with all of them.

    Args:
        stage: the stage, identical on all replicas.
        group: the replicas.
        trained: returns the parameters that are trained, always in one order.
        same_batches: whether each replica's buffers already cover all replicas' batches.
    """

    def __init__(
        self,
        stage: Stage,
        group: ReplicaGroup,
        trained: Callable[[], list[nn.Parameter]],
        *,
        same_batches: bool,
    ) -> None:
        loss = stage.loss_module
        modules = stage.modules if loss is None else (*stage.modules, loss)
        self._group = group
        self._trained = trained
        self._same_batches = same_batches
        # By place, as a forward pass may put another tensor there.
        self._places = {
            id(buffer): (part._buffers, name)
            for module in modules
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        }
        self._before = [buffer.clone() for buffer in self._buffers()]
        self._all_had_gradients = False

    def _buffers(self) -> list[Tensor]:
        """Return the buffers as they are now; complex ones as views of their real and imaginary parts."""
        found = [buffers[name] for buffers, name in self._places.values()]
        return [
            torch.view_as_real(buffer.resolve_conj()) if buffer.is_complex() else buffer
            for buffer in found
            if buffer is not None
        ]

    @torch.no_grad()
    def begin(self, weight: Weight) -> Wait[Weight]:
        """Begin to synchronise, before the gradients are averaged, after which all parameters have one.

        Args:
            weight: how much counts in this replica's gradients.

        Returns:
            What waits and returns the sum of all replicas' weights, to be called once the gradients are
            averaged: it drops those that no replica had, so that an optimizer skips these parameters.
        """
        pairs = zip(self._buffers(), self._before, strict=True)
        moved = [_change(old, buffer).reshape(-1) for buffer, old in pairs]
        found = [] if self._all_had_gradients else [p.grad is not None for p in self._trained()]
        first = 0.0 if isinstance(weight, Tensor) else weight
        known = torch.tensor([first, *found], dtype=torch.float64)
        flat = torch.cat([known.to(self._group.computes_on), *moved])
        if isinstance(weight, Tensor):
            flat[0] = weight
        work = dist.all_reduce(flat, group=self._group.device, async_op=True)
        assert work is not None

        def finish() -> Weight:
            work.wait()
            if found:
                self._drop_gradients(flat[1 : 1 + len(found)])
            self._move_buffers(flat[1 + len(found) :])
            return float(flat[0]) if flat.device.type == "cpu" else flat[0]

        return finish

    def _drop_gradients(self, found: Tensor) -> None:
        having = (found > 0).tolist()  # the host waits for the device, in the first update
        for parameter, has in zip(self._trained(), having, strict=True):
            if not has:
                parameter.grad = None
        self._all_had_gradients = found.device.type == "cuda" and all(having)

    @torch.no_grad()
    def _move_buffers(self, moved: Tensor) -> None:
        buffers = self._buffers()
        parts = torch.split(moved, [buffer.numel() for buffer in buffers])
        for buffer, old, part in zip(buffers, self._before, parts, strict=True):
            mean = buffer.is_floating_point() or self._same_batches
            by = (part / self._group.count if mean else part).view_as(old)
            new = old ^ (by > 0) if old.dtype == torch.bool else old + by.to(old.dtype)
            # Where nothing changed, do not even add zero: it would turn -0.0 into 0.0.
            buffer.copy_(torch.where(by == 0, old, new))
            old.copy_(buffer)


def _change(old: Tensor, new: Tensor) -> Tensor:
    """Return what was added to a tensor, in float64; of bools 1 where they changed."""
    if old.dtype == torch.bool:
        return (old ^ new).double()
    return torch.where(new == old, 0, new - old).double()
