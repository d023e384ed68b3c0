"""What a stage tells of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pipelocal.objective.residual import Residual
from pipelocal.tasks import Sums


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """The metrics of one batch; scalars on the stage's device, means over the batch unless noted."""

    loss: Tensor
    weight: Tensor | float
    """What the loss is a mean over: how many rows, tokens or pixels count."""
    sums: Sums
    """The task's sums, from which its metrics are made."""
    residual: Residual | None
    """The residual between eta and delta; None on a batch that was not reconciled."""
    figures: Mapping[str, Tensor]
    """Figures that a user's objective reports, as means over the batch."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """A stage's result for one batch."""

    output: Tensor
    """The next stage's input, ``[B, ...]``: detached, and contiguous or channels last."""
    beside: tuple[Tensor, ...]
    """What the next stage's input has beside its main tensor."""
    output_gradient: Tensor
    """delta, with the output's shape and dtype."""
    metrics: StepMetrics
