"""Measures the gap between a stage's input gradient and the previous stage's output gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelocal.objective.distances import SMALLEST_NORM, length, row_cosines


@dataclass(frozen=True, kw_only=True)
class Residual:
    """The gap between eta and delta on a batch; scalars."""

    distance: Tensor
    """The distance that is minimised."""
    cosine: Tensor
    """Cosine between the two, averaged over the rows; 1 if they agree."""
    relative: Tensor
    """Length of the difference over that of delta, for the whole batch; 0 if they agree or delta is zero."""

    @classmethod
    def of(cls, distance: Tensor, eta: Tensor, delta: Tensor) -> Residual:
        """Make a residual from the distance and the gradients, both ``[B, F]`` at the same scale."""
        eta = eta.detach()
        of_delta = length(delta)
        relative = length(eta - delta) / of_delta.clamp_min(SMALLEST_NORM)
        return cls(
            distance=distance.detach(),
            cosine=row_cosines(eta, delta).mean(),
            relative=torch.where(of_delta < SMALLEST_NORM, 0.0, relative),
        )
