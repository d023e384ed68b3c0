"""Heads, local losses and reconciliation: what a stage trains for.

The names of ``--objective``::

    greedy  every stage minimises its local loss
    sgr     every stage but the first also reconciles its input gradient with the output gradient
            of the stage before it
    bp      ordinary back-propagation through the uncut model, in one process: the baseline
"""

from collections.abc import Callable

from pipelocal.heads.build import HEADS
from pipelocal.objective.distances import DISTANCES
from pipelocal.objective.first_order import FirstOrderReconciliation
from pipelocal.objective.local import ExactReconciliation, Greedy, Objective
from pipelocal.objective.reconciliation import WEIGHT_SCHEDULES, Reconciliation
from pipelocal.registry import Registry

ObjectiveBuilder = Callable[[int, Reconciliation], Objective]
"""Called with the stage's number and how it is to reconcile, if it does."""

OBJECTIVES: Registry[ObjectiveBuilder] = Registry("objective", takes="stage, reconciliation")


@OBJECTIVES.register("bp")
@OBJECTIVES.register("greedy")
def _greedy(_stage: int, _reconciliation: Reconciliation) -> Objective:
    return Greedy()


@OBJECTIVES.register("sgr")
def _sgr(stage: int, reconciliation: Reconciliation) -> Objective:
    if stage == 1:  # there is none before it to reconcile with
        return Greedy()
    exact = reconciliation.form == "exact"
    return (ExactReconciliation if exact else FirstOrderReconciliation)(reconciliation)


__all__ = [
    "DISTANCES",
    "HEADS",
    "OBJECTIVES",
    "WEIGHT_SCHEDULES",
    "ExactReconciliation",
    "FirstOrderReconciliation",
    "Greedy",
    "Objective",
    "Reconciliation",
]
