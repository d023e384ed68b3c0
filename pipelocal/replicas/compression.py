"""Gradients in fewer bytes between the replicas of a stage, as communication hooks of DDP.

What a replica hands to collectives for a bucket of N numbers, of the R replicas' average:

| name | bytes of N numbers | the average |
| --- | --- | --- |
| ``bf16`` | 2 N | mean of the gradients in bfloat16, taken in float32 |
| ``powersgd`` | 4 rank (n + m) a matrix ``[n, m]`` | of low rank; what it leaves out goes into the next |
| ``sign`` | N / 8 + 4 | majority of the signs, times the mean of the replicas' mean sizes |
| ``sparse-sign`` | N / 4 + 4 | mean of random signs, right in expectation |
| with a share below 0.24 | share N + (1 - share) N / 127 + 8, expected at most | the same |

``powersgd`` is all-reduced, the others are gathered: a replica sends this R - 1 times. Every replica then
computes the average from the same bytes in the same order, so that all have the same bits.
"""

# No "from __future__ import annotations": DDP compares a hook's annotations with the types themselves.

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.futures import Future
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from pipelocal.errors import UserError
from pipelocal.registry import Registry
from pipelocal.replicas.bits import (
    TERNARIES_A_BYTE,
    pack_bits,
    pack_ternaries,
    packed_bytes,
    unpack_bits,
    unpack_ternaries,
)
from pipelocal.replicas.gaps import ESCAPE, expected_bytes, pack_gaps, unpack_gaps
from pipelocal.seeding import derive_seed

SCALE_BYTES = 4
LENGTH_BYTES = 4


@dataclass(frozen=True)
class Settings:
    """What a compression is made of.

    Attributes:
        group: the replicas.
        device: of the gradients.
        seed: of random draws, the same on all replicas.
        share: of the coordinates that ``sparse-sign`` keeps, expected; above 0, at most 1.
        rank: of the matrices of ``powersgd``, at least 1.
    """

    group: dist.ProcessGroup
    device: torch.device
    seed: int
    share: float
    rank: int


class Compression(ABC):
    """Averages gradients over the replicas; one for each DDP.

    Attributes:
        sent_bytes: what this replica has had to send so far, in bytes of payload.
        settings: what it was made of.
    """

    def __init__(self, settings: Settings) -> None:
        self.sent_bytes = 0
        self.settings = settings
        self._group = settings.group
        self._size = settings.group.size()
        self._step = 0

    def begin(self, step: int) -> None:
        """Tell, before each averaging, how many batches were trained so far.

        Random draws depend on it and on no averaging before it: a resumed run draws the same.
        """
        self._step = step

    @abstractmethod
    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """The average of a bucket over the replicas, ``[N]`` in the bucket's own dtype and memory."""

    def _gather(self, own: Tensor, average: Callable[[Tensor], Tensor]) -> Future[Tensor]:
        """Gather one row of bytes of every replica, and make the average of them.

        Args:
            own: ``[K]``, uint8, this replica's; K is the same on all.
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
            # gloo's future knows nothing of CUDA streams, so that its callbacks could run too early.
            work.wait()
            done: Future[Tensor] = Future(devices=[device])
            done.set_result(average(rows.to(device)))
            return done

        def finish(gathered: Future[list[list[Tensor]]]) -> Tensor:
            gathered.value()  # raises here if another replica is gone, when the rows hold nothing
            return average(rows)

        future: Future[list[list[Tensor]]] = work.get_future()
        return future.then(finish)

    def _longest(self, length: int) -> int:
        """The greatest length that a replica gives. Waits for all of them.

        Not for a callback, where gloo's own few threads would wait for each other.
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
        """Add to :attr:`sent_bytes` what a ring of replicas has each send for an all-reduce."""
        self.sent_bytes += math.ceil(2 * (self._size - 1) * size_bytes / self._size)


CompressionBuilder = Callable[[Settings], Compression]

COMPRESSIONS: Registry[CompressionBuilder] = Registry("gradient compression")


def compress(
    ddp: DistributedDataParallel,
    name: str,
    group: dist.ProcessGroup,
    *,
    seed: int,
    share: float,
    rank: int,
) -> Compression:
    """Have DDP average its gradients in a compressed form from now on.

    Args:
        ddp: has no hook. Its module is called without arguments, and its backward pass adds zeros to the
            gradients; it runs once here, on all replicas together.
        name: in :data:`COMPRESSIONS`.
        group: the replicas; DDP's own.
        seed: see :class:`Settings`, as for those below. Another one for each stage.
        share: for ``sparse-sign``.
        rank: for ``powersgd``.

    Raises:
        UserError: there is no such compression, or it cannot be used so.
    """
    device = next(ddp.parameters()).device
    compression = COMPRESSIONS.get(name)(Settings(group, device, seed, share, rank))
    _settle_buckets(ddp)
    ddp.register_comm_hook(compression, _average)
    return compression


def _average(compression: Compression, bucket: dist.GradBucket) -> Future[Tensor]:
    return compression.average(bucket)


def _settle_buckets(ddp: DistributedDataParallel) -> None:
    """Have DDP arrange its buckets for good, which it does after its first backward pass.

    Else a resumed run has other buckets in its first averaging than the run that went on: other scales,
    and draws for other coordinates.
    """
    parameters = list(ddp.parameters())
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    ddp().backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def over_nccl(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Whether a tensor of a device travels by NCCL; a group may have another way for each device."""
    return device.type == "cuda" and "cuda:nccl" in dist.get_backend_config(group)


@COMPRESSIONS.register("bf16")
class Bf16(Compression):
    """Half the bytes. PyTorch's hook where it works, that is with NCCL.

    With gloo the hook is refused; there the replicas gather each other's numbers and take the mean in
    float32, which rounds each gradient once and no sum. Beyond two replicas that sends more bytes than
    an all-reduce would.
    """

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """See :class:`Compression`."""
        buffer = bucket.buffer()
        if over_nccl(self._group, buffer.device):
            self.count_all_reduce(2 * buffer.numel())
            averaged: Future[Tensor] = bf16_compress_hook(self._group, bucket)
            return averaged

        def mean(rows: Tensor) -> Tensor:
            return buffer.copy_(rows.view(torch.bfloat16).mean(0, dtype=torch.float32))

        return self._gather(buffer.to(torch.bfloat16).view(torch.uint8), mean)


@COMPRESSIONS.register("sign")
class Sign(Compression):
    """signSGD with majority vote (Bernstein et al. 2018, arXiv 1802.05957 and 1810.05291).

    One bit a coordinate, and the mean size of the bucket's gradients, a float32. The average is the sign
    of the sum of the signs, 0 on a tie, times the mean of the sizes. One bit has no zero: a coordinate
    whose gradient is 0 votes as a positive one.
    """

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """See :class:`Compression`."""
        buffer = bucket.buffer()
        scale = buffer.float().abs().mean()

        def vote(rows: Tensor) -> Tensor:
            positive = torch.zeros(buffer.shape, dtype=torch.int16, device=buffer.device)
            for row in rows[:, SCALE_BYTES:]:
                positive += unpack_bits(row, buffer.numel())
            majority = (2 * positive - self._size).sign_()
            return buffer.copy_(majority * _scales(rows).mean())

        return self._gather(_message(scale, pack_bits(buffer >= 0)), vote)


@COMPRESSIONS.register("sparse-sign")
class SparseSign(Compression):
    """Random signs, the more seldom the smaller the gradient (arXiv 2302.09634).

    With s the mean size of a bucket's gradients over ``share``, coordinate i is kept with probability
    min(1, |g_i| / s), and its sign is sent; the other coordinates are 0. The average is the mean over
    the replicas of s times their signs, in expectation the mean gradient where no probability is cut at
    1. Nothing is carried over to the next batch.

    The scale is an addition: the paper sends the signs alone, and has the learning rate stand for it,
    which then has to be chosen anew.

    What is kept is sent as gaps where these are expected to be fewer bytes than two bits a coordinate,
    which all replicas know from the share. The average has the same bits either way.
    """

    def __init__(self, settings: Settings) -> None:
        if not 0 < settings.share <= 1:
            raise UserError(
                f"a share of {settings.share:g} of the coordinates: choose above 0 and at most 1"
            )
        super().__init__(settings)

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """See :class:`Compression`."""
        buffer = bucket.buffer()
        values = buffer.float()
        sizes = values.abs()
        scale = sizes.mean() / self.settings.share
        draws = torch.rand(
            values.shape, generator=self._generator(bucket.index()), device=values.device
        )
        # Not "draw < size / scale": without a gradient both are 0.
        kept = draws.mul_(scale) < sizes
        ternaries = values.sign().to(torch.int8) * kept
        count = values.numel()
        if gaps_are_fewer(count, self.settings.share):
            unpack, packed = unpack_gaps, pack_gaps(ternaries)
            missing = self._longest(packed.numel()) - packed.numel()
            packed = F.pad(packed, (0, missing), value=ESCAPE)
        else:
            unpack, packed = unpack_ternaries, pack_ternaries(ternaries)

        def mean(rows: Tensor) -> Tensor:
            total = torch.zeros_like(values)
            for row, its_scale in zip(rows[:, SCALE_BYTES:], _scales(rows), strict=True):
                total += unpack(row, count) * its_scale
            return buffer.copy_(total.div_(self._size))

        return self._gather(_message(scale, packed), mean)

    def _generator(self, bucket: int) -> torch.Generator:
        """This replica's own draws for a bucket of this step: replicas that drew alike would err alike."""
        seed = derive_seed(
            self.settings.seed, "sparse-sign", self._group.rank(), self._step, bucket
        )
        return torch.Generator(self.settings.device).manual_seed(seed)


def gaps_are_fewer(count: int, share: float) -> bool:
    """Whether gaps and their length are expected to be fewer bytes than ternaries; below 0.244 of many."""
    return expected_bytes(count, share) + LENGTH_BYTES < packed_bytes(count, TERNARIES_A_BYTE)


def _message(scale: Tensor, packed: Tensor) -> Tensor:
    """A float32 and packed numbers, as bytes; the float32 first, where it lies at a multiple of four."""
    return torch.cat((scale.view(1).view(torch.uint8), packed))


def _scales(rows: Tensor) -> Tensor:
    """The scales ``[R]``, float32, of messages ``[R, K]``."""
    first = rows[:, :SCALE_BYTES].clone(memory_format=torch.contiguous_format)
    return first.view(torch.float32).squeeze(1)


@COMPRESSIONS.register("powersgd")
def _powersgd(settings: Settings) -> Compression:
    from pipelocal.replicas.powersgd import PowerSGD  # which is made of what is in this file

    return PowerSGD(settings)
