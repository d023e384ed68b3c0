"""Compresses gradients between the replicas of a stage, by communication hooks of DDP.

For a bucket of N numbers averaged over R replicas, a replica passes to collectives:

| name | bytes of N numbers | the average |
| --- | --- | --- |
| ``bf16`` | 2 N | mean of the gradients in bfloat16, taken in float32 |
| ``powersgd`` | 4 rank (n + m) per matrix ``[n, m]`` | low rank; the error is added to the next gradient |
| ``sign`` | N / 8 + 4 | majority of the signs, times the mean of the replicas' mean magnitudes |
| ``sparse-sign`` | N / 4 + 4 | mean of random signs, unbiased |
| with a share below 0.24 | share N + (1 - share) N / 127 + 8, expected at most | the same |

``powersgd`` is all-reduced, the others are gathered: a replica sends this R - 1 times. Every replica then
computes the average from the same bytes in the same order, so that all have the same bits.
"""

# No "from __future__ import annotations": DDP compares a hook's annotations with actual types.

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from pipelocal.registry import Registry
from pipelocal.replicas.hook import Compression, HookSettings, over_nccl
from pipelocal.replicas.powersgd import PowerSGD
from pipelocal.replicas.signs import Sign, SparseSign

CompressionBuilder = Callable[[HookSettings], Compression]

COMPRESSIONS: Registry[CompressionBuilder] = Registry("gradient compression", takes="settings")


def compress(
    ddp: DistributedDataParallel,
    name: str,
    group: dist.ProcessGroup,
    *,
    seed: int,
    share: float,
    rank: int,
) -> Compression:
    """Make DDP average its gradients in compressed form from now on.

    Args:
        ddp: without a hook. Its module takes no arguments, and its backward pass adds zeros to the
            gradients; it runs once here, on all replicas together.
        name: a name in :data:`COMPRESSIONS`.
        group: the replicas; DDP's own.
        seed: see :class:`HookSettings`, as for those below. Another one for each stage.
        share: for ``sparse-sign``.
        rank: for ``powersgd``.

    Raises:
        UserError: there is no such compression, or it cannot be used here.
    """
    device = next(ddp.parameters()).device
    compression = COMPRESSIONS.get(name)(HookSettings(group, device, seed, share, rank))
    _settle_buckets(ddp)
    ddp.register_comm_hook(compression, _average)
    return compression


def _average(compression: Compression, bucket: dist.GradBucket) -> Future[Tensor]:
    return compression.average(bucket)


def _settle_buckets(ddp: DistributedDataParallel) -> None:
    """Make DDP settle its buckets, which it does after its first backward pass.

    Otherwise the first averaging of a resumed run would have other buckets than in an uninterrupted run:
    other scales, and draws for other coordinates.
    """
    parameters = list(ddp.parameters())
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    ddp().backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


@COMPRESSIONS.register("bf16")
class Bf16(Compression):
    """bfloat16 gradients, half the bytes; uses PyTorch's hook with NCCL.

    gloo does not support that hook; there the replicas gather each other's numbers and average in
    float32, which rounds each gradient once and no sum. With more than two replicas that sends more
    bytes than an all-reduce would.
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


COMPRESSIONS.register("powersgd")(PowerSGD)
COMPRESSIONS.register("sign")(Sign)
COMPRESSIONS.register("sparse-sign")(SparseSign)
