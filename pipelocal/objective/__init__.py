"""Heads, local losses and reconciliation: what a stage trains for.

The names of ``--objective``::

    greedy  every stage minimises its local loss
    sgr     every stage but the first also reconciles its input gradient with the output gradient
            of the stage before it
    bp      ordinary back-propagation through the uncut model, in one process: the baseline
"""

from collections.abc import Callable

from pipelocal.objective.distances import DISTANCES, Distance
from pipelocal.objective.heads import HEADS
from pipelocal.objective.local import ExactReconciliation, Greedy, Objective
from pipelocal.registry import Registry

ObjectiveBuilder = Callable[[int, Distance, float], Objective]
"""Called with the stage's number, the distance and its weight."""

OBJECTIVES: Registry[ObjectiveBuilder] = Registry("objective")


@OBJECTIVES.register("bp")
@OBJECTIVES.register("greedy")
def _greedy(stage: int, distance: Distance, weight: float) -> Objective:  # noqa: ARG001
    return Greedy()


@OBJECTIVES.register("sgr")
def _sgr(stage: int, distance: Distance, weight: float) -> Objective:
    # The first stage has no stage before it to reconcile with.
    return ExactReconciliation(distance, weight) if stage > 1 else Greedy()


__all__ = [
    "DISTANCES",
    "HEADS",
    "OBJECTIVES",
    "ExactReconciliation",
    "Greedy",
    "Objective",
]
