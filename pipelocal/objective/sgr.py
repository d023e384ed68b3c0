"""Successive Gradient Reconciliation as a recipe for all stages (Yang et al. 2024, arXiv 2406.05222)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipelocal.errors import UserError
from pipelocal.models.unit import Shape
from pipelocal.objective.delta_encoding import SUMMARIES, Summary, SummaryBuilder
from pipelocal.objective.distances import DISTANCES, Distance
from pipelocal.objective.exact import ExactReconciliation
from pipelocal.objective.first_order import FirstOrderReconciliation
from pipelocal.objective.greedy import Greedy
from pipelocal.objective.local import Objective, Place
from pipelocal.objective.options import check_words
from pipelocal.objective.reconciliation import WEIGHT_SCHEDULES, Reconciliation, WeightFactor


@dataclass(frozen=True, kw_only=True)
class SGR:
    """Successive Gradient Reconciliation: stages also reconcile eta with the previous stage's delta.

    Arguments that take a function also take the name of a built-in one. The first stage only minimises
    its local loss.

    Args:
        weight: weight of the distance relative to the local loss (lambda); or one per stage after the first.
        every: interval in batches; the weight is multiplied by it, and delta is sent only with
            reconciled batches.
        distance: distance between per-sample gradients ``[B, F]``; or ``cosine``, ``relative``, ``squared``.
        form: ``first-order`` (one more ordinary pass) or ``exact`` (double backward).
        fraction: first-order: share of the rows used, redrawn each time.
        schedule: maps the progress of the training, 0 to 1, to a factor of the weight; or ``constant``,
            ``warmup``, ``decay``, ``late``.
        delta: how delta is encoded; or ``full``, ``bf16``, ``int8``, ``pooled``, ``sketch``.
        delta_size: numbers per sample of a sketch.

    Raises:
        UserError: a value is out of range, or a name is unknown.
    """

    weight: float | Sequence[float] = 0.01
    every: int = 8
    distance: Distance | str = "cosine"
    form: Literal["first-order", "exact"] = "first-order"
    fraction: float = 0.5
    schedule: WeightFactor | str = "constant"
    delta: SummaryBuilder | str = "full"
    delta_size: int = 256

    def __post_init__(self) -> None:
        check_words(self)
        weights = [self.weight] if isinstance(self.weight, int | float) else self.weight
        if any(not 0 <= weight < float("inf") for weight in weights):
            raise UserError(f"SGR: weight={self.weight}: give numbers of at least 0")
        if self.every < 1 or not 0 < self.fraction <= 1:
            raise UserError(
                f"SGR: every={self.every}, fraction={self.fraction}: give at least 1, and above 0 to 1"
            )
        for registry, name in (
            (DISTANCES, self.distance),
            (WEIGHT_SCHEDULES, self.schedule),
            (SUMMARIES, self.delta),
        ):
            if isinstance(name, str):
                registry.get(name)

    @property
    def exact(self) -> bool:
        """Whether the objective differentiates twice."""
        return self.form == "exact"

    @property
    def reconcile_every(self) -> int:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`."""
        return self.every

    def weight_of(self, stage: int, stages: int) -> float:
        """Return lambda of a stage, from the second on.

        Raises:
            UserError: there is not one weight per stage after the first.
        """
        if isinstance(self.weight, int | float):
            return self.weight
        if len(self.weight) != stages - 1:
            raise UserError(
                f"--reconcile-weight {','.join(map(str, self.weight))}: give one number, or {stages - 1} "
                f"with commas between them, one for each stage but the first"
            )
        return self.weight[stage - 2]

    def for_stage(self, place: Place) -> Objective:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`."""
        if place.previous_delta is None:  # nothing to reconcile with
            return Greedy()
        schedule = self.schedule
        reconciliation = Reconciliation(
            distance=DISTANCES.get(self.distance)
            if isinstance(self.distance, str)
            else self.distance,
            weight=self.weight_of(place.number, place.stages),
            schedule=WEIGHT_SCHEDULES.get(schedule) if isinstance(schedule, str) else schedule,
            total_steps=place.total_steps,
            every=self.every,
            fraction=self.fraction,
            summary=place.previous_delta,
        )
        return (ExactReconciliation if self.exact else FirstOrderReconciliation)(reconciliation)

    def delta_encoding(self, shape: Shape, seed: int) -> Summary:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`."""
        build = SUMMARIES.get(self.delta) if isinstance(self.delta, str) else self.delta
        return build(shape, self.delta_size, seed)
