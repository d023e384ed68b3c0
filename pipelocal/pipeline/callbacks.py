"""What a user's own code is told in the course of a training, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BatchEnd:
    """A stage has trained on a batch."""

    stage: int
    """From 1."""
    epoch: int
    """From 1."""
    step: int
    """Training batches of the run so far, this one included."""
    loss: Tensor
    """Of this batch, a scalar on the stage's device: reading it may make the host wait."""


@dataclass(frozen=True, kw_only=True)
class EvaluationEnd:
    """A stage has met all test batches."""

    stage: int
    epoch: int
    step: int
    figures: Mapping[str, float | None]
    """``loss`` and the task's metrics, of the stage's own head."""


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """A stage has met all training batches of an epoch."""

    stage: int
    epoch: int
    step: int
    loss: float | None
    """Mean over the epoch; None if the stage met no batch."""


class Callback:
    """Override what is of interest; each is called where the stage is, on that rank alone.

    What it raises ends the run with its reason. It must not communicate with other ranks: they need not
    be there at the same time.
    """

    def on_batch_end(self, event: BatchEnd) -> None:
        """Behind every training batch of a stage."""

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        """Behind every evaluation of a stage."""

    def on_epoch_end(self, event: EpochEnd) -> None:
        """Behind the last training batch of an epoch, before the evaluation."""
