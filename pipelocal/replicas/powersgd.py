"""PyTorch's PowerSGD between the replicas of a stage, with the safeguards that it needs here."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future

from pipelocal.errors import UserError
from pipelocal.replicas.hook import Compression, HookSettings, over_nccl
from pipelocal.seeding import derive_seed


class _Matrices:
    """Wraps a bucket for PyTorch's hook, which fails on a gradient without dimensions."""

    def __init__(self, bucket: dist.GradBucket) -> None:
        self.index = bucket.index
        self.buffer = bucket.buffer
        self.is_last = bucket.is_last
        self._gradients = [g if g.dim() else g.view(1) for g in bucket.gradients()]

    def gradients(self) -> list[Tensor]:
        return self._gradients


class PowerSGD(Compression):
    """PyTorch's PowerSGD (Vogels et al. 2019, arXiv 1905.13727).

    From the third averaging on, a matrix gradient is sent as two thin matrices. The approximation error is
    added to the next gradient. Snapshots do not contain that error: a resumed run starts without it.

    Rank 1, and ranks of 3 or more, are exact for gradients of lower rank. Rank 2 is not: PyTorch
    orthogonalises its two directions by Gram-Schmidt, which makes the second one mere rounding errors.
    """

    # The least that PyTorch accepts, because buckets change after the first averaging.
    START = 2
    # Without it a gradient of lower rank gives NaN; small, because it shrinks the average.
    EPSILON = 1e-12

    def __init__(self, settings: HookSettings) -> None:
        if settings.rank < 1:
            raise UserError(f"matrices of rank {settings.rank} for powersgd: choose 1 or more")
        if settings.device.type == "cuda" and not over_nccl(settings.group, settings.device):
            # The hook's callbacks would read data that gloo may still be copying to the device.
            raise UserError(
                "powersgd on a GPU needs NCCL between the replicas: "
                "give each replica a GPU of its own, or choose another compression"
            )
        if settings.device.type == "cpu" and torch.cuda.is_available():
            raise UserError(
                "powersgd on the CPU fails in PyTorch where a GPU can be seen: "
                "set CUDA_VISIBLE_DEVICES to nothing, or choose another compression"
            )
        super().__init__(settings)
        self._state = PowerSGDState(
            settings.group,
            matrix_approximation_rank=settings.rank,
            start_powerSGD_iter=self.START,
            orthogonalization_epsilon=self.EPSILON,
        )
        self._first_q: dict[int, Tensor] = {}

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """See :class:`Compression`."""
        state, buffer, matrices = self._state, bucket.buffer(), _Matrices(bucket)
        compressed = state.iter >= self.START
        if compressed:
            self._give_directions(matrices)
        before = state.total_numel_after_compression
        averaged: Future[Tensor] = powerSGD_hook(state, matrices)  # type: ignore[arg-type]
        numbers = state.total_numel_after_compression - before if compressed else buffer.numel()
        self.count_all_reduce(numbers * buffer.itemsize)
        if buffer.device.type == "cpu":
            # The hook sends again from gloo's own threads. With two buckets in progress these could
            # deadlock, or send in another order than on another replica.
            averaged.wait()
        return averaged

    def _give_directions(self, bucket: _Matrices) -> None:
        """Set random directions where the hook has none to start from.

        This happens at the start, as in the hook itself but without seeding torch's own generators, and
        whenever a direction has become zero, which a zero gradient causes: from zero the hook would never
        recover.
        """
        state, index, buffer = self._state, bucket.index(), bucket.buffer()
        shapes = self._shapes(bucket)
        if index not in self._first_q:
            seed = derive_seed(self.settings.seed, "powersgd", index)
            generator = torch.Generator().manual_seed(seed)
            first_q = torch.randn(sum(m * rank for _, m, rank in shapes), generator=generator)
            self._first_q[index] = first_q.to(buffer)
            state.p_memory_dict[index] = buffer.new_empty(sum(n * rank for n, _, rank in shapes))
            state.q_memory_dict[index] = self._first_q[index].clone()
        start = 0
        for _, m, rank in shapes:
            place = slice(start, start + m * rank)
            q, first = (
                x[place].view(m, rank) for x in (state.q_memory_dict[index], self._first_q[index])
            )
            q.copy_(torch.where((q == 0).all(0), first, q))
            start = place.stop

    def _shapes(self, bucket: _Matrices) -> list[tuple[int, int, int]]:
        """Return rows, columns and rank of each gradient that the hook will compress, in its order."""
        shapes = []
        for gradient in bucket.gradients():
            n, m = gradient.flatten(1).shape if gradient.dim() > 1 else (len(gradient), 1)
            rank = min(n, m, self._state.matrix_approximation_rank)
            if (n + m) * rank * self._state.min_compression_rate < n * m:
                shapes.append((n, m, rank))
        return shapes
