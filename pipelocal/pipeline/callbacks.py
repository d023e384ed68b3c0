"""Callbacks through which user code follows the training of each stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BatchEnd:
    """The event that a stage has trained on a batch."""

    stage: int
    """Number of the stage, from 1."""
    epoch: int
    """Number of the epoch, from 1."""
    step: int
    """Training batches of the run so far, including this one."""
    loss: Tensor
    """Loss of this batch, a scalar on the stage's device: reading it may make the host wait."""


@dataclass(frozen=True, kw_only=True)
class EvaluationEnd:
    """The event that a stage has evaluated all test batches."""

    stage: int
    epoch: int
    step: int
    figures: Mapping[str, float | None]
    """``loss`` and the task's metrics, of the stage's own head."""


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """The event that a stage has trained on all batches of an epoch."""

    stage: int
    epoch: int
    step: int
    loss: float | None
    """Mean loss over the epoch; None if the stage had no batch."""


class Callback:
    """Base class of callbacks: override the methods of interest; each runs on the stage's rank only.

    An exception ends the run, with the exception as its reason. A callback must not communicate with other
    ranks: they need not call it at the same time.
    """

    def on_batch_end(self, event: BatchEnd) -> None:
        """Called after every training batch of a stage."""

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        """Called after every evaluation of a stage."""

    def on_epoch_end(self, event: EpochEnd) -> None:
        """Called after the last training batch of an epoch, before the evaluation."""
