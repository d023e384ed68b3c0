"""How far a stage's input gradient and the output gradient of the stage before it are apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelocal.objective.distances import SMALLEST_NORM, length, row_cosines


@dataclass(frozen=True, kw_only=True)
class Residual:
    """How far eta and delta are apart on a batch; scalars."""

    distance: Tensor
    """What is minimised."""
    cosine: Tensor
    """Mean over the rows of the cosine between the two, 1 where they agree."""
    relative: Tensor
    """Length of the difference over delta's, of the whole batch; 0 where they agree, or delta is none."""

    @classmethod
    def of(cls, distance: Tensor, eta: Tensor, delta: Tensor) -> Residual:
        """From the distance and the gradients, both ``[B, F]`` at the same scale."""
        eta = eta.detach()
        of_delta = length(delta)
        relative = length(eta - delta) / of_delta.clamp_min(SMALLEST_NORM)
        return cls(
            distance=distance.detach(),
            cosine=row_cosines(eta, delta).mean(),
            relative=torch.where(of_delta < SMALLEST_NORM, 0.0, relative),
        )
