"""Distances between a stage's input gradient and the output gradient of the stage before it.

Each takes per-sample gradients of the per-sample loss, ``eta`` and ``delta``, both ``[B, F]``, and
returns one scalar distance, which duplicating the batch does not change. Per-sample means that the
gradients of a batch-mean loss were multiplied by B first: otherwise a squared distance would scale with
1/B² and its weight would depend on the batch size.
"""

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from pipelocal.registry import Registry

Distance = Callable[[Tensor, Tensor], Tensor]

DISTANCES: Registry[Distance] = Registry("distance", takes="eta, delta")

SMALLEST_NORM = 1e-12
"""Norm below which a gradient counts as zero, to avoid dividing by zero: nothing is reconciled."""

SHORTEST = 0.1
"""In ``cosine``, the least length of a gradient, as a share of the batch's typical delta."""


def power_of_two(values: Tensor) -> Tensor:
    """Return a scalar that, as a divisor, brings the largest value to between 1/2 and 1.

    It is a power of two, so that dividing and multiplying again is exact, while squares of float32 numbers
    beyond 1e19, or below 1e-23, no longer overflow or underflow. It is 1 for zeros.
    """
    largest = torch.linalg.vector_norm(values.detach(), inf)
    exponent = torch.frexp(largest).exponent.clamp(-100, 100)
    return torch.ldexp(torch.ones_like(largest), exponent)


def length(values: Tensor) -> Tensor:
    """Compute the L2 norm of all values, a scalar, without overflow or underflow of the squares."""
    scale = power_of_two(values)
    norm: Tensor = torch.linalg.vector_norm(values / scale) * scale
    return norm


def row_cosines(eta: Tensor, delta: Tensor, *, shortest: float = 0.0) -> Tensor:
    """Compute the cosines between rows of two gradients ``[B, F]``: ``[B]``, 0 where one is zero.

    Args:
        eta: gradient at the input.
        delta: gradient at the output of the stage before.
        shortest: lower bound of every length, as a share of the root mean square of the deltas' lengths.
    """
    own, other = power_of_two(eta), power_of_two(delta)
    eta, delta = eta / own, delta / other  # does not change the cosine, and keeps squares finite
    eta_norm, delta_norm = (torch.linalg.vector_norm(each, dim=1) for each in (eta, delta))
    least = shortest * delta_norm.square().mean().sqrt()
    ratio = (other / own).clamp_max(1 / SMALLEST_NORM**2)
    eta_norm = eta_norm.clamp_min(torch.maximum(least * ratio, SMALLEST_NORM / own))
    delta_norm = delta_norm.clamp_min(torch.maximum(least, SMALLEST_NORM / other))
    # Divide the dot products, not the gradients, to keep no further tensors of their size.
    cosines: Tensor = (eta * delta).sum(1) / eta_norm / delta_norm
    return cosines


@DISTANCES.register("cosine")
def cosine(eta: Tensor, delta: Tensor) -> Tensor:
    """Compute one minus the cosine, from 0 (same direction) to 2, averaged over the samples.

    Its gradient at eta grows as 1 / length. To keep samples already learned, or a classifier
    initialised to zero, from dominating the batch, lengths are clamped to at least a tenth of the root
    mean square of the batch's deltas. Apart from that, it depends on neither length.
    """
    return (1 - row_cosines(eta, delta, shortest=SHORTEST)).mean()


@DISTANCES.register("relative")
def relative(eta: Tensor, delta: Tensor) -> Tensor:
    """Compute the squared L2 distance over delta's squared length, both summed over the batch.

    The ratio is not taken per sample: a sample that the stage before has learned has almost no delta,
    and its unbounded ratio would dominate the mean. The result is 0 if delta is zero for the whole batch.
    """
    difference = eta - delta
    of_difference, of_delta = power_of_two(difference), power_of_two(delta)
    squares = (delta / of_delta).square().sum()
    vanishes = squares.sqrt() * of_delta < SMALLEST_NORM
    ratio = (difference / of_difference).square().sum() / squares.masked_fill(vanishes, 1.0)
    return ratio * (of_difference / of_delta).square().masked_fill(vanishes, 0.0)


@DISTANCES.register("squared")
def squared(eta: Tensor, delta: Tensor) -> Tensor:
    """Compute the squared L2 distance of the per-sample gradients."""
    return (eta - delta).square().sum(1).mean()
