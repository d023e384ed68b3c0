"""Averages the signs of gradients: all of them, or a random selection."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn import functional as F

from pipelocal.errors import UserError
from pipelocal.replicas.bits import (
    TERNARIES_A_BYTE,
    pack_bits,
    pack_ternaries,
    packed_bytes,
    unpack_bits,
    unpack_ternaries,
)
from pipelocal.replicas.gaps import ESCAPE, expected_bytes, pack_gaps, unpack_gaps
from pipelocal.replicas.hook import LENGTH_BYTES, Compression, HookSettings
from pipelocal.seeding import derive_seed

SCALE_BYTES = 4


class Sign(Compression):
    """signSGD with majority vote (Bernstein et al. 2018, arXiv 1802.05957 and 1810.05291).

    Sends one bit per coordinate, and the mean magnitude of the bucket's gradients as a float32. The average
    is the sign of the sum of the signs, 0 on a tie, times the mean of the magnitudes. One bit cannot encode
    zero: a coordinate whose gradient is 0 votes as positive.
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


class SparseSign(Compression):
    """Random signs, less frequent for smaller gradients (arXiv 2302.09634).

    With s the mean magnitude of a bucket's gradients divided by ``share``, coordinate i is kept with
    probability min(1, |g_i| / s), and its sign is sent; the other coordinates are 0. The average is the
    mean over the replicas of s times their signs, whose expectation is the mean gradient if no probability is
    clamped to 1. Nothing is carried over to the next batch.

    The scale is an addition: the paper sends only the signs and absorbs the scale in the learning rate,
    which then has to be tuned again.

    The kept signs are sent as gaps if these are expected to take fewer bytes than two bits per coordinate,
    which all replicas compute from the share. The average has the same bits either way.
    """

    def __init__(self, settings: HookSettings) -> None:
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
        # Not "draw < size / scale", which divides 0 by 0 if all gradients are zero.
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
        """Return this replica's generator for a bucket of this step; equal draws would have equal errors."""
        seed = derive_seed(
            self.settings.seed, "sparse-sign", self._group.rank(), self._step, bucket
        )
        return torch.Generator(self.settings.device).manual_seed(seed)


def gaps_are_fewer(count: int, share: float) -> bool:
    """Return whether gaps are expected to take fewer bytes than ternaries; true below about 0.244."""
    return expected_bytes(count, share) + LENGTH_BYTES < packed_bytes(count, TERNARIES_A_BYTE)


def _message(scale: Tensor, packed: Tensor) -> Tensor:
    """Join a float32 and packed numbers as bytes; the float32 comes first, aligned to four bytes."""
    return torch.cat((scale.view(1).view(torch.uint8), packed))


def _scales(rows: Tensor) -> Tensor:
    """Return the scales ``[R]``, float32, of messages ``[R, K]``."""
    first = rows[:, :SCALE_BYTES].clone(memory_format=torch.contiguous_format)
    return first.view(torch.float32).squeeze(1)
