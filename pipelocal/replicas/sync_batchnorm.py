"""BatchNorm over the batches of all replicas of a stage, on the CPU as well as on CUDA.

``torch.nn.SyncBatchNorm`` supports only GPUs: it refuses tensors on the CPU, and DDP refuses it there.

Each replica sends, for every channel, its number of values, their mean, and the sum of their squared
distances from it. Combined, these give the joint mean and variance without subtracting two large
numbers (Chan, Golub and LeVeque 1983).

The backward pass sums the gradients at the statistics over the replicas. So a replica computes gradients of
the *sum* of the replicas' losses with respect to its own tensors, and parameter gradients that are then
averaged over the replicas are those of the *mean* of the losses: with equally many rows on each, of the
joint batch's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from pipelocal.errors import UserError

Run = Callable[[Callable[[], object]], object]
"""Calls a function that waits for other replicas; may break off the wait with an error."""


def synchronise_norms(
    module: nn.Module, group: dist.ProcessGroup, *, run: Run = lambda call: call()
) -> int:
    """Make every BatchNorm of a module normalise over the batches of all replicas in training.

    The modules remain the same objects, with another class: parameters, buffers, hooks and names in the
    state dict are unchanged. From then on all replicas must run the same forward and backward passes,
    or they deadlock.

    Args:
        module: may be a BatchNorm itself.
        group: the replicas.
        run: runs the collectives.

    Returns:
        The number of BatchNorms changed; those already synchronised are left as they are.

    Raises:
        UserError: one has its own forward method, or no shape yet.
    """
    norms = [
        part
        for part in module.modules()
        if isinstance(part, _BatchNorm) and not isinstance(part, SyncNorm | nn.SyncBatchNorm)
    ]
    for norm in norms:
        kind = type(norm)
        if kind.forward is not _BatchNorm.forward or isinstance(norm, LazyModuleMixin):
            raise UserError(
                f"{kind.__name__} cannot be synchronised over replicas: "
                "use nn.BatchNorm1d, nn.BatchNorm2d or nn.BatchNorm3d itself"
            )
    for norm in norms:
        norm.__class__ = _synchronised(type(norm))  # type: ignore[arg-type]
        assert isinstance(norm, SyncNorm)
        norm.shared = SharedGroup(group, run)
    return len(norms)


class SharedGroup:
    """A process group shared by a module and its copies; a group itself cannot be copied."""

    def __init__(self, group: dist.ProcessGroup, run: Run) -> None:
        self.group = group
        self.run = run

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class SyncNorm(_BatchNorm):
    """A BatchNorm whose training forward normalises over the batches of all replicas."""

    shared: SharedGroup

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the base class's name for it
        """Normalise this replica's rows.

        Args:
            input: ``[B, C]`` or ``[B, C, ...]``; B may differ between replicas, and may be 0.

        Returns:
            The normalised rows, with the same shape and dtype.
        """
        if not self.training or self.shared.group.size() == 1:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        # Like torch's own: statistics of half-precision inputs are in float32.
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]

        count = x.numel() // x.size(1)
        own_mean = x.sum(dims) / max(count, 1)
        # Everything below uses the centred values, so that autograd keeps those instead of x.
        centred = x - own_mean.view(shape)
        own_squares = centred.square().sum(dims)
        own = torch.stack((torch.full_like(own_mean, count), own_mean, own_squares))
        counts, means, squares = _Gather.apply(own, self.shared).unbind(1)  # type: ignore[no-untyped-call]

        total = counts.sum(0)
        # Relative to one of the means, so that the summands are small.
        mean = means[0] + (counts * (means - means[0])).sum(0) / total
        joint_squares = (squares + counts * (means - mean).square()).sum(0)
        if self.track_running_stats:
            self._track(mean, joint_squares / (total - 1).clamp_min(1))

        scale = torch.rsqrt(joint_squares / total + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = (own_mean - mean) * scale
        if self.bias is not None:
            shift = shift + self.bias
        out: Tensor = centred * scale.view(shape) + shift.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Update the running statistics, each ``[C]``, as torch's own BatchNorm does."""
        factor = 0.0 if self.momentum is None else self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased_variance)):
            if running is not None:
                running.mul_(1 - factor).add_(now, alpha=factor)


@cache
def _synchronised(kind: type[_BatchNorm]) -> type[SyncNorm]:
    return type(f"Sync{kind.__name__}", (SyncNorm, kind), {"__module__": __name__})


class _Gather(Function):
    """Gathers the replicas' tensors ``[...]`` as ``[R, ...]``, the same on all."""

    @staticmethod
    def forward(own: Tensor, shared: SharedGroup) -> Tensor:
        own = own.detach().contiguous()
        rows = own.new_empty(shared.group.size(), *own.shape)
        shared.run(lambda: dist.all_gather(list(rows.unbind()), own, group=shared.group))
        return rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, SharedGroup], _: Tensor) -> None:
        ctx.shared = inputs[1]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return _OwnSum.apply(upstream, ctx.shared), None  # type: ignore[no-untyped-call]


class _OwnSum(Function):
    """Sums ``[R, ...]``, which differs between replicas, over the replicas; returns this replica's row.

    This and :class:`_Gather` are each other's backward pass.
    """

    @staticmethod
    def forward(rows: Tensor, shared: SharedGroup) -> Tensor:
        total = rows.detach().clone(memory_format=torch.contiguous_format)
        shared.run(lambda: dist.all_reduce(total, group=shared.group))
        return total[shared.group.rank()].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, SharedGroup], _: Tensor) -> None:
        ctx.shared = inputs[1]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(upstream, ctx.shared), None  # type: ignore[no-untyped-call]
