"""What a stage reports of batches, for tests of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pipelocal.pipeline.tally import Reading, Tally
from pipelocal.tasks import Task

UNEVEN = (0, 7, 8, 20)
"""Where batches of 20 rows begin and end."""


def over(task: Task, outputs: Tensor, targets: Tensor, cuts: Sequence[int] = UNEVEN) -> Reading:
    """Return what a stage reports of all rows, taken in uneven batches."""
    tally = Tally(torch.device("cpu"), task=task)
    for number, (start, stop) in enumerate(pairwise(cuts)):
        output, target = outputs[start:stop], targets[start:stop]
        loss, sums = task.loss(output, target), task.sums(output, target)
        tally.add(batch=number, rows=stop - start, loss=loss, sums=sums)
    return tally.read_and_reset()


def gradient(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of the mean loss at the outputs."""
    leaf = outputs.clone().requires_grad_()
    (found,) = torch.autograd.grad(task.loss(leaf, targets).mean, leaf)
    return found


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(classes: int, *shape: int, seed: int = 1) -> Tensor:
    """Return labels, int64."""
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))
