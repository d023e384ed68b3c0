"""Measures the gap between a stage's input gradient and the previous stage's output gradient."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from pipelocal.objective.distances import SMALLEST_NORM, length, power_of_two, row_cosines


@dataclass(frozen=True, kw_only=True)
class Residual:
    """The gap between eta and delta on a batch; scalars."""

    distance: Tensor
    """The distance that is minimised."""
    cosine: Tensor
    """Cosine between the two, averaged over the rows; 1 if they agree."""
    relative: Tensor
    """Length of the difference over that of delta, for the whole batch; 0 if they agree or delta is zero."""
    cap: Tensor
    """What the cosine cannot exceed if delta is the same at all places, as behind a pooled linear head: the
    share of eta's length that is constant over space or tokens, a mean over the rows; NaN without places."""

    @classmethod
    def of(
        cls, distance: Tensor, eta: Tensor, delta: Tensor, *, whole: Tensor | None = None
    ) -> Residual:
        """Make a residual.

        Args:
            distance: the distance, a scalar.
            eta: gradient at the input, ``[B, F]``.
            delta: gradient at the output of the stage before, ``[B, F]``, at the same scale.
            whole: eta in its own shape ``[B, ...]``, at any scale; None where the cap is not wanted.
        """
        eta = eta.detach()
        of_delta = length(delta)
        relative = length(eta - delta) / of_delta.clamp_min(SMALLEST_NORM)
        return cls(
            distance=distance.detach(),
            cosine=row_cosines(eta, delta).mean(),
            relative=torch.where(of_delta < SMALLEST_NORM, 0.0, relative),
            cap=_cap(eta if whole is None else whole.detach()),
        )


def _cap(eta: Tensor) -> Tensor:
    """Return the mean over the rows of ``sqrt(P) |mean of eta over its P places| / |eta|``.

    By the Cauchy-Schwarz inequality no row's cosine with a gradient that is the same at all places is larger.
    A row of zeros counts as 0.

    Args:
        eta: ``[B, T, C]`` or ``[B, C, H, W]``; any other shape has no places.
    """
    if eta.dim() not in (3, 4):
        return eta.new_full((), nan)
    eta = eta / power_of_two(eta)  # does not change the ratio, and keeps squares finite
    places = eta.transpose(1, 2) if eta.dim() == 3 else eta.flatten(2)  # [B, C, P]
    even = torch.linalg.vector_norm(places.mean(2), dim=1) * places.shape[2] ** 0.5
    lengths = torch.linalg.vector_norm(eta.flatten(1), dim=1)
    cap: Tensor = (even / lengths.clamp_min(SMALLEST_NORM)).mean()
    return cap
