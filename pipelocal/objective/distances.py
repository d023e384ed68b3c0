"""Distances between a stage's input gradient and the output gradient of the stage before it.

Each takes per-sample gradients of the per-sample loss, ``eta`` and ``delta``, both ``[B, F]``, and
returns one distance as a scalar, the same for a batch given twice over. Per-sample means that a
batch-mean loss's gradients were multiplied by B first: otherwise a squared distance would carry 1/B²
and its weight would depend on the batch size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipelocal.registry import Registry

Distance = Callable[[Tensor, Tensor], Tensor]

DISTANCES: Registry[Distance] = Registry("distance")

SMALLEST_NORM = 1e-12
"""Lengths below this count as this, so that a batch without a gradient gives no NaN."""

SHORTEST = 0.1
"""In ``cosine``, a gradient counts as no shorter than this share of the batch's typical delta."""


@DISTANCES.register("cosine")
def cosine(eta: Tensor, delta: Tensor) -> Tensor:
    """One minus the cosine, from 0 (same direction) to 2; the mean over the samples.

    Its gradient at eta grows as 1 / length. So that samples that are learned, or a classifier that
    begins at zero, do not rule the batch, lengths below a tenth of the root mean square of the
    batch's deltas count as that. Free of both lengths but for that, and of a common scale.
    """
    shortest = SHORTEST * delta.square().sum(1).mean().sqrt().clamp_min(SMALLEST_NORM / SHORTEST)
    eta_norm = torch.linalg.vector_norm(eta, dim=1).clamp_min(shortest)
    delta_norm = torch.linalg.vector_norm(delta, dim=1).clamp_min(shortest)
    cosines: Tensor = (eta / eta_norm[:, None] * (delta / delta_norm[:, None])).sum(1)
    return (1 - cosines).mean()


@DISTANCES.register("relative")
def relative(eta: Tensor, delta: Tensor) -> Tensor:
    """Squared L2 distance over delta's squared length, both summed over the batch.

    Not sample by sample: a sample that the stage before has learned has next to no delta, and
    would rule the mean with a ratio without bound.
    """
    return (eta - delta).square().sum() / delta.square().sum().clamp_min(SMALLEST_NORM**2)


@DISTANCES.register("squared")
def squared(eta: Tensor, delta: Tensor) -> Tensor:
    """Squared L2 distance of the per-sample gradients."""
    return (eta - delta).square().sum(1).mean()
