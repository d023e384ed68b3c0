"""``--replicate ddp``: the replicas of a stage become one at an update, by DistributedDataParallel.

Behind each update all replicas are alike to the last bit: parameters, and the means of what each one's
BatchNorm has gathered. In between, each has gradients of its own batches alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipelocal.replicas.carrier import Carrier
from pipelocal.stage import Stage
from pipelocal.transport.groups import ReplicaGroup


class DataParallel:
    """Every replica holds all of the stage; see :class:`~pipelocal.replicas.one_of_several.Replicas`.

    Args:
        stage: its parameters, already the same on all replicas.
        group: the replicas.
        compress: registers a communication hook, and returns what is told of each update; None for none.
    """

    def __init__(
        self,
        stage: Stage,
        group: ReplicaGroup,
        compress: Callable[[DistributedDataParallel], Callable[[int], None]] | None = None,
    ) -> None:
        self._stage = stage
        self._group = group
        carrier = Carrier(stage.body, stage.head)
        with warnings.catch_warnings():
            # Of torch 2.13 on: what replaces the argument still broadcasts buffers at the start.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
            self._ddp = group.together(
                lambda: DistributedDataParallel(
                    carrier, process_group=group.device, broadcast_buffers=False
                )
            )
        self._begin = None if compress is None else compress(self._ddp)

    @property
    def count(self) -> int:
        return self._group.count

    @property
    def index(self) -> int:
        return self._group.index

    def average(self) -> None:
        if self._begin is not None:
            self._begin(self._stage.updated_at)
        self._group.together(self._average)

    def _average(self) -> None:
        self._ddp().backward()
        average_buffers(self._stage, self._group)

    def updated(self) -> None:
        pass

    def total(self, values: Tensor) -> Tensor:
        return self._group.total(values)

    def whole(self, state: Any) -> Any:
        return state


def average_buffers(stage: Stage, group: ReplicaGroup) -> None:
    """Means over the replicas of what they gathered in floating-point buffers, such as BatchNorm's."""
    modules = (stage.body, stage.head)
    buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
    if not buffers:
        return
    flat = torch.cat([buffer.detach().reshape(-1).float() for buffer in buffers])
    dist.all_reduce(flat, group=group.device)
    flat /= group.count
    parts = torch.split(flat, [buffer.numel() for buffer in buffers])
    with torch.no_grad():
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
