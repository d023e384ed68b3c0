"""How one stage reconciles: distance, weight, and which batches and rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pipelocal.objective.delta_encoding import Summary
from pipelocal.objective.distances import Distance, cosine
from pipelocal.registry import Registry

WeightFactor = Callable[[float], float]
"""From the progress of the training, 0 to 1, to a factor of the weight."""

WEIGHT_SCHEDULES: Registry[WeightFactor] = Registry("reconciliation schedule", takes="progress")

RAMP = 0.1
"""Share of the training over which the weight rises."""


@WEIGHT_SCHEDULES.register("constant")
def constant(_progress: float) -> float:
    """The weight itself."""
    return 1.0


@WEIGHT_SCHEDULES.register("warmup")
def warmup(progress: float) -> float:
    """From zero, linearly over the first tenth of the training."""
    return min(1.0, progress / RAMP)


@WEIGHT_SCHEDULES.register("decay")
def decay(progress: float) -> float:
    """Linearly to zero at the end of the training."""
    return 1.0 - progress


@dataclass(frozen=True, kw_only=True)
class Reconciliation:
    """Of one stage.

    Args:
        distance: D, on per-sample gradients.
        weight: lambda, before the schedule.
        schedule: factor of the weight over the training.
        total_steps: training batches in all.
        every: reconcile in every so many batches, with so many times the weight: the mean over
            batches is the same.
        fraction: first-order: share of the rows, drawn anew each time.
        step: first-order: length of the displacement as a share of the input's; None for one that
            fits the dtype.
        summary: how delta of the stage before travels; None for as it is.
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
        """Both gradients per sample, in one form, as ``[B, F]``.

        Args:
            eta: gradient of the batch's mean loss at the input, ``[B, ...]``.
            message: what came of delta, which is of a mean loss too, ``[B, ...]``.
        """
        rows = len(eta)  # turns gradients of the batch mean into per-sample gradients
        if self.summary is not None:
            eta, message = self.summary.reduce(eta), self.summary.decode(message)
        return (eta * rows).flatten(1), (message * rows).flatten(1)

    def weight_at(self, step: int) -> float:
        """The weight in a batch that is reconciled, from the number of those before it."""
        return self.weight * self.every * self.schedule(min(1.0, step / self.total_steps))
