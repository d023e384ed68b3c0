"""Settings of one stage's reconciliation: distance, weight, and which batches and rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pipelocal.objective.delta_encoding import Summary
from pipelocal.objective.distances import Distance, cosine
from pipelocal.registry import Registry

WeightFactor = Callable[[float], float]
"""Maps the progress of the training, 0 to 1, to a factor of the weight."""

WEIGHT_SCHEDULES: Registry[WeightFactor] = Registry("reconciliation schedule", takes="progress")

RAMP = 0.1
"""Share of the training over which the weight rises."""


@WEIGHT_SCHEDULES.register("constant")
def constant(_progress: float) -> float:
    """Keep the weight constant."""
    return 1.0


@WEIGHT_SCHEDULES.register("warmup")
def warmup(progress: float) -> float:
    """Raise the weight linearly from zero over the first tenth of the training."""
    return min(1.0, progress / RAMP)


@WEIGHT_SCHEDULES.register("decay")
def decay(progress: float) -> float:
    """Lower the weight linearly to zero at the end of the training."""
    return 1.0 - progress


@WEIGHT_SCHEDULES.register("late")
def late(progress: float) -> float:
    """Reconcile in the second half of the training only."""
    return 0.0 if progress < 0.5 else 1.0


@dataclass(frozen=True, kw_only=True)
class Reconciliation:
    """How one stage reconciles.

    Args:
        distance: D, on per-sample gradients.
        weight: lambda, before the schedule.
        schedule: factor of the weight over the training.
        total_steps: training batches in all.
        every: interval in batches; the weight is multiplied by it, so that the mean over batches
            stays the same.
        fraction: first-order: share of the rows used, redrawn each time.
        step: first-order: length of the displacement relative to the input's; None for a value that
            suits the dtype.
        summary: how delta of the stage before is encoded; None for unchanged.
    """

    distance: Distance = cosine
    weight: float = 0.01
    schedule: WeightFactor = constant
    total_steps: int = 1
    every: int = 1
    fraction: float = 1.0
    step: float | None = None
    summary: Summary | None = None

    def comparable(self, eta: Tensor, message: Tensor) -> tuple[Tensor, Tensor]:
        """Return both gradients per sample, in comparable form, as ``[B, F]``.

        Args:
            eta: gradient of the batch's mean loss at the input, ``[B, ...]``.
            message: what was received of delta, also of the mean loss, ``[B, ...]``.
        """
        rows = len(eta)  # converts gradients of the batch mean to per-sample gradients
        if self.summary is not None:
            eta, message = self.summary.reduce(eta), self.summary.decode(message)
        return (eta * rows).flatten(1), (message * rows).flatten(1)

    def weight_at(self, step: int) -> float:
        """Return the weight in a reconciled batch, given the number of batches before it."""
        return self.weight * self.every * self.schedule(min(1.0, step / self.total_steps))
