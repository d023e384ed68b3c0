"""``--replicate ddp``: the replicas of a stage become one at an update, by DistributedDataParallel.

Behind each update all replicas are alike to the last bit: parameters, and the means of what each one's
BatchNorm has gathered. In between, each has gradients of its own batches alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipelocal.replicas.carrier import Carrier
from pipelocal.replicas.compression import Compression
from pipelocal.stage import Stage
from pipelocal.transport.groups import ReplicaGroup


class DataParallel:
    """Every replica holds all of the stage; see :class:`~pipelocal.replicas.one_of_several.Replicas`.

    Args:
        stage: its parameters, already the same on all replicas.
        group: the replicas.
        compress: registers a communication hook; None for none.
    """

    def __init__(
        self,
        stage: Stage,
        group: ReplicaGroup,
        compress: Callable[[DistributedDataParallel], Compression] | None = None,
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
        self._plain_bytes = 0
        self._compression: Compression | None = None
        if compress is not None:
            self._compression = group.together(lambda: compress(self._ddp))
        else:
            group.together(self._settle_buckets)

    def _settle_buckets(self) -> None:
        """DDP arranges its buckets anew behind the first averaging; a run that goes on begins with one too.

        What is in which bucket decides how sums over three replicas or more are rounded.
        """
        self._ddp().backward()
        self._ddp.zero_grad(set_to_none=True)

    @property
    def count(self) -> int:
        return self._group.count

    @property
    def index(self) -> int:
        return self._group.index

    @property
    def sent_bytes(self) -> int:
        return self._compression.sent_bytes if self._compression else self._plain_bytes

    def average(self) -> None:
        if self._compression is not None:
            self._compression.begin(self._stage.updated_at)
        self._plain_bytes += all_reduced_bytes(self._stage, self.count)
        self._group.together(self._average)

    def _average(self) -> None:
        self._ddp().backward()
        average_buffers(self._stage, self._group)

    def updated(self) -> None:
        pass

    def each(self, values: Tensor) -> Tensor:
        return self._group.each(values)

    def whole(self, state: Any) -> Any:
        return state


def all_reduced_bytes(stage: Stage, count: int) -> int:
    """What each of ``count`` replicas has to send to average the gradients of all parameters as they are."""
    parameters = (p for group in stage.optimizer.param_groups for p in group["params"])
    whole: int = sum(p.numel() * p.element_size() for p in parameters)
    return math.ceil(2 * (count - 1) * whole / count)


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
