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
    """Have DDP average its gradients in a compressed form from now on.

    Args:
        ddp: has no hook. Its module is called without arguments, and its backward pass adds zeros to the
            gradients; it runs once here, on all replicas together.
        name: in :data:`COMPRESSIONS`.
        group: the replicas; DDP's own.
        seed: see :class:`HookSettings`, as for those below. Another one for each stage.
        share: for ``sparse-sign``.
        rank: for ``powersgd``.

    Raises:
        UserError: there is no such compression, or it cannot be used so.
    """
    device = next(ddp.parameters()).device
    compression = COMPRESSIONS.get(name)(HookSettings(group, device, seed, share, rank))
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


COMPRESSIONS.register("powersgd")(PowerSGD)
COMPRESSIONS.register("sign")(Sign)
COMPRESSIONS.register("sparse-sign")(SparseSign)
