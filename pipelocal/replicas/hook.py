"""Base class of compressed gradient averaging: a communication hook of DDP, and its settings."""

# No "from __future__ import annotations": DDP compares a hook's annotations with actual types.

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

LENGTH_BYTES = 4


@dataclass(frozen=True)
class HookSettings:
    """Settings of a compression.

    Attributes:
        group: the replicas.
        device: device of the gradients.
        seed: seed of random draws, the same on all replicas.
        share: expected share of coordinates that ``sparse-sign`` keeps; above 0, at most 1.
        rank: rank of the matrices of ``powersgd``, at least 1.
    """

    group: dist.ProcessGroup
    device: torch.device
    seed: int
    share: float
    rank: int


class Compression(ABC):
    """Averages gradients over the replicas; each DDP has its own.

    Attributes:
        sent_bytes: bytes of payload that this replica has sent so far.
        settings: the settings of this compression.
    """

    def __init__(self, settings: HookSettings) -> None:
        self.sent_bytes = 0
        self.settings = settings
        self._group = settings.group
        self._size = settings.group.size()
        self._step = 0

    def begin(self, step: int) -> None:
        """Set, before each averaging, the number of batches trained so far.

        Random draws depend on it and not on earlier averagings, so that a resumed run draws the same.
        """
        self._step = step

    @abstractmethod
    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """Average a bucket over the replicas: ``[N]`` in the bucket's own dtype and memory."""

    def _gather(self, own: Tensor, average: Callable[[Tensor], Tensor]) -> Future[Tensor]:
        """Gather one row of bytes from every replica, and compute the average from them.

        Args:
            own: this replica's row ``[K]``, uint8; K is the same on all.
            average: called with the rows ``[R, K]``, uint8, in the order of the ranks.
        """
        self.sent_bytes += own.numel() * (self._size - 1)
        device = own.device
        by_way_of_host = device.type == "cuda" and not over_nccl(self._group, device)
        if by_way_of_host:
            own = own.cpu()
        rows = own.new_empty(self._size, own.numel())
        work = dist.all_gather(list(rows.unbind()), own, group=self._group, async_op=True)
        assert work is not None
        if by_way_of_host:
            # gloo's future ignores CUDA streams, so its callbacks could run too early.
            work.wait()
            done: Future[Tensor] = Future(devices=[device])
            done.set_result(average(rows.to(device)))
            return done

        def finish(gathered: Future[list[list[Tensor]]]) -> Tensor:
            gathered.value()  # raises if another replica is gone and the rows are not filled
            return average(rows)

        future: Future[list[list[Tensor]]] = work.get_future()
        return future.then(finish)

    def _longest(self, length: int) -> int:
        """Return the greatest length over all replicas; waits for all of them.

        Do not call it in a callback, where gloo's few threads would wait for each other.
        """
        self.sent_bytes += LENGTH_BYTES * (self._size - 1)
        device = self.settings.device
        if not over_nccl(self._group, device):
            device = torch.device("cpu")
        own = torch.tensor([length], dtype=torch.int32, device=device)
        lengths = own.new_empty(self._size, 1)
        dist.all_gather(list(lengths.unbind()), own, group=self._group)
        return int(lengths.max())

    def count_all_reduce(self, size_bytes: int) -> None:
        """Add to :attr:`sent_bytes` the bytes that each replica sends in a ring all-reduce."""
        self.sent_bytes += math.ceil(2 * (self._size - 1) * size_bytes / self._size)


def over_nccl(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Return whether a group uses NCCL for tensors of a device; back ends may differ per device."""
    return device.type == "cuda" and "cuda:nccl" in dist.get_backend_config(group)
