"""Distances between a stage's input gradient and the output gradient of the stage before it.

Each takes per-sample gradients of the per-sample loss, ``eta`` and ``delta``, both ``[B, F]``, and
returns one distance as a scalar, the same for a batch given twice over. Per-sample means that a
batch-mean loss's gradients were multiplied by B first: otherwise a squared distance would carry 1/B²
and its weight would depend on the batch size.
"""

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from pipelocal.registry import Registry

Distance = Callable[[Tensor, Tensor], Tensor]

DISTANCES: Registry[Distance] = Registry("distance", takes="eta, delta")

SMALLEST_NORM = 1e-12
"""A gradient that is shorter is none: there is nothing to reconcile, and no quotient of zeros."""

SHORTEST = 0.1
"""In ``cosine``, a gradient counts as no shorter than this share of the batch's typical delta."""


def power_of_two(values: Tensor) -> Tensor:
    """A scalar that brings the largest of some values to between 1/2 and 1, by division.

    A power of two, so that what is divided and multiplied again is the same to the last bit; but squares
    of float32 numbers beyond 1e19, or below 1e-23, are no longer infinite, or nothing. 1 for zeros.
    """
    largest = torch.linalg.vector_norm(values.detach(), inf)
    exponent = torch.frexp(largest).exponent.clamp(-100, 100)
    return torch.ldexp(torch.ones_like(largest), exponent)


def length(values: Tensor) -> Tensor:
    """L2 norm of all values, a scalar, for which no square is too large or too small."""
    scale = power_of_two(values)
    norm: Tensor = torch.linalg.vector_norm(values / scale) * scale
    return norm


def row_cosines(eta: Tensor, delta: Tensor, *, shortest: float = 0.0) -> Tensor:
    """The cosine between each row of two gradients ``[B, F]``: ``[B]``, 0 where one of them is none.

    Args:
        eta: of the input.
        delta: of the output of the stage before.
        shortest: share of the root mean square of the deltas' lengths that every length counts as at least.
    """
    own, other = power_of_two(eta), power_of_two(delta)
    eta, delta = eta / own, delta / other  # the cosine does not mind, and squares stay finite
    eta_norm, delta_norm = (torch.linalg.vector_norm(each, dim=1) for each in (eta, delta))
    least = shortest * delta_norm.square().mean().sqrt()
    ratio = (other / own).clamp_max(1 / SMALLEST_NORM**2)
    eta_norm = eta_norm.clamp_min(torch.maximum(least * ratio, SMALLEST_NORM / own))
    delta_norm = delta_norm.clamp_min(torch.maximum(least, SMALLEST_NORM / other))
    # Divided at the end, and not each gradient by its length: nothing more of their size is kept.
    cosines: Tensor = (eta * delta).sum(1) / eta_norm / delta_norm
    return cosines


@DISTANCES.register("cosine")
def cosine(eta: Tensor, delta: Tensor) -> Tensor:
    """One minus the cosine, from 0 (same direction) to 2; the mean over the samples.

    Its gradient at eta grows as 1 / length. So that samples that are learned, or a classifier that
    begins at zero, do not rule the batch, lengths below a tenth of the root mean square of the
    batch's deltas count as that. Free of both lengths but for that, and of a common scale.
    """
    return (1 - row_cosines(eta, delta, shortest=SHORTEST)).mean()


@DISTANCES.register("relative")
def relative(eta: Tensor, delta: Tensor) -> Tensor:
    """Squared L2 distance over delta's squared length, both summed over the batch.

    Not sample by sample: a sample that the stage before has learned has next to no delta, and
    would rule the mean with a ratio without bound. 0 where the whole batch has no delta.
    """
    difference = eta - delta
    of_difference, of_delta = power_of_two(difference), power_of_two(delta)
    squares = (delta / of_delta).square().sum()
    vanishes = squares.sqrt() * of_delta < SMALLEST_NORM
    ratio = (difference / of_difference).square().sum() / squares.masked_fill(vanishes, 1.0)
    return ratio * (of_difference / of_delta).square().masked_fill(vanishes, 0.0)


@DISTANCES.register("squared")
def squared(eta: Tensor, delta: Tensor) -> Tensor:
    """Squared L2 distance of the per-sample gradients."""
    return (eta - delta).square().sum(1).mean()
