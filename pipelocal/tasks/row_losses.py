"""Takes a batch's loss apart into what its rows, or their steps, add to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipelocal.tasks.task import Loss


def row_losses(loss: Callable[[Tensor, Tensor], Loss], output: Tensor, target: Tensor) -> Tensor:
    """Compute what each row, or each step of a row, adds to the loss of a batch.

    Args:
        loss: that of a task; rows must not depend on each other in it.
        output: of a head, ``[B, outputs]``; or ``[B, S, outputs]``, where each step has a target of its own.
        target: ``[B, ...]`` or ``[B, S, ...]``.

    Returns:
        ``[B, S]``, of the output's dtype, or ``[B, 1]``; their sum is the batch's loss.
    """
    steps = output.shape[1] if output.dim() == 3 else 1
    if output.dim() == 3:
        output, target = output.flatten(0, 1), target.flatten(0, 1)

    def of_row(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        mean, weight = loss(output.unsqueeze(0), target.unsqueeze(0))
        return mean, torch.as_tensor(weight, dtype=mean.dtype, device=mean.device)

    means, weights = torch.func.vmap(of_row)(output, target)
    total = weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)  # where nothing counts
    return (means * weights / total).view(-1, steps)
