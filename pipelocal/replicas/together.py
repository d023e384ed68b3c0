"""What all ways of averaging share: figures, and the averaging of buffers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

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

    def begin_average(self) -> Callable[[], None]:
        raise AssertionError("a frozen stage has nothing to average")

    def updated(self) -> None:
        pass

    def begin_each(self, values: Tensor) -> Callable[[], Tensor]:
        return self._group.begin_each(values)

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
    """Makes replicas agree on buffers, and on which parameters have a gradient at all.

    A floating-point buffer, such as a running mean, changes by the mean of the replicas' changes since the
    last update; an integer buffer, such as a count of batches, by their sum, or by their mean if the
    replicas count the same batches. A buffer that no replica changed keeps its bits.

    All of this is one transfer, concurrent with that of the gradients. It is skipped if there are no buffers
    and all parameters have had gradients.

    Args:
        stage: the stage, identical on all replicas.
        group: the replicas.
        same_batches: whether each replica's buffers already cover all replicas' batches.
    """

    def __init__(self, stage: Stage, group: ReplicaGroup, *, same_batches: bool) -> None:
        modules = stage.modules
        self._group = group
        self._same_batches = same_batches
        self._buffers = [b for module in modules for b in module.buffers() if b.dtype != torch.bool]
        self._before = [buffer.clone() for buffer in self._buffers]
        self._all_had_gradients = False

    @torch.no_grad()
    def begin(self, has_gradient: Tensor) -> Callable[[], Tensor]:
        """Start to synchronise the buffers.

        Args:
            has_gradient: bool ``[P]``, by parameter, on the CPU.

        Returns:
            A function that completes it, and returns for each parameter whether any replica has a
            gradient, bool ``[P]`` on the CPU.
        """
        if self._all_had_gradients and not self._buffers:
            return lambda: torch.ones_like(has_gradient)
        pairs = zip(self._buffers, self._before, strict=True)
        moved = [torch.where(b == old, 0, b - old).double().reshape(-1) for b, old in pairs]
        flat = torch.cat([has_gradient.to(self._group.computes_on).double(), *moved])
        work = dist.all_reduce(flat, group=self._group.device, async_op=True)
        assert work is not None

        def finish() -> Tensor:
            work.wait()
            return self._finish(flat, has_gradient)

        return finish

    @torch.no_grad()
    def _finish(self, flat: Tensor, has_gradient: Tensor) -> Tensor:
        sizes = [len(has_gradient), *(buffer.numel() for buffer in self._buffers)]
        found, *parts = torch.split(flat, sizes)
        for buffer, old, part in zip(self._buffers, self._before, parts, strict=True):
            mean = buffer.is_floating_point() or self._same_batches
            by = (part / self._group.count if mean else part).view_as(old)
            # Where nothing changed, do not even add zero: it would turn -0.0 into 0.0.
            buffer.copy_(torch.where(by == 0, old, old + by.to(old.dtype)))
            old.copy_(buffer)
        if not self._all_had_gradients:
            has_gradient = (found > 0).cpu()  # the host waits for the device, in the first update
            self._all_had_gradients = bool(has_gradient.all())
        else:
            has_gradient = torch.ones_like(has_gradient)
        return has_gradient


def gradients_of(parameters: list[nn.Parameter]) -> Tensor:
    """Return which of the parameters have a gradient, bool ``[P]``."""
    return torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.bool)


def drop_gradients(parameters: list[nn.Parameter], found: Tensor) -> None:
    """Drop gradients that no replica has, so that an optimizer skips those parameters."""
    for parameter, there in zip(parameters, found.tolist(), strict=True):
        if not there:
            parameter.grad = None
