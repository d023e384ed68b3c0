"""Objectives: what a stage minimises, its local loss alone or with a reconciliation term.

The values of ``--objective``::

    greedy  every stage minimises its local loss
    sgr     every stage but the first also reconciles its input gradient with the output gradient
            of the stage before it
    infopro early stages also reconstruct the image, or their own input
    bp      ordinary back-propagation through the uncut model, in one process: the baseline
"""

from pipelocal.objective.distances import DISTANCES
from pipelocal.objective.exact import ExactReconciliation
from pipelocal.objective.first_order import FirstOrderReconciliation
from pipelocal.objective.greedy import BackPropagation, Greedy, as_recipe
from pipelocal.objective.infopro import InfoPro
from pipelocal.objective.local import LocalPass, Objective, ObjectiveRecipe, Place, Relay, relays_of
from pipelocal.objective.reconciliation import WEIGHT_SCHEDULES, Reconciliation
from pipelocal.objective.sgr import SGR
from pipelocal.registry import Registry

OBJECTIVES: Registry[object] = Registry("objective", takes=None)
"""Each is a recipe or the class of one; see :func:`~pipelocal.objective.greedy.as_recipe`."""

OBJECTIVES.register("greedy")(Greedy())
OBJECTIVES.register("sgr")(SGR)
OBJECTIVES.register("infopro")(InfoPro)
OBJECTIVES.register("bp")(BackPropagation())


__all__ = [
    "DISTANCES",
    "OBJECTIVES",
    "SGR",
    "WEIGHT_SCHEDULES",
    "BackPropagation",
    "ExactReconciliation",
    "FirstOrderReconciliation",
    "Greedy",
    "InfoPro",
    "LocalPass",
    "Objective",
    "ObjectiveRecipe",
    "Place",
    "Reconciliation",
    "Relay",
    "as_recipe",
    "relays_of",
]
