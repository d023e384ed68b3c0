"""Objectives: what a stage minimises, its local loss alone or with a reconciliation term.

The values of ``--objective``::

    greedy  every stage minimises its local loss
    sgr     every stage but the first also reconciles its input gradient with the output gradient
            of the stage before it
    anp     recurrent stages learn from how noise on their units changes the local loss
    infopro early stages also reconstruct the image, or their own input
    bwbpf   the last stage's body too learns by a local head; the global loss trains the classifier alone
    lg-fg   every stage minimises its local losses by forward gradients, without a backward pass
    contsup every stage minimises its local loss, and sees again what lies before its input
    loco    every body also learns from the next stage's loss, whose gradient is sent back
    pgl     every so many batches the global loss's gradient goes back through all stages
    bp      ordinary back-propagation through the uncut model, in one process: the baseline
    deep-supervision    the same with the losses of all stages' heads added
"""

from pipelocal.objective.anp import ANP
from pipelocal.objective.bwbpf import BWBPF, DeepSupervision
from pipelocal.objective.contsup import ContSup
from pipelocal.objective.distances import DISTANCES
from pipelocal.objective.exact import ExactReconciliation
from pipelocal.objective.first_order import FirstOrderReconciliation
from pipelocal.objective.greedy import BackPropagation, Greedy, as_recipe
from pipelocal.objective.infopro import InfoPro
from pipelocal.objective.lg_fg import LGFG
from pipelocal.objective.local import (
    LocalPass,
    Objective,
    ObjectiveRecipe,
    Place,
    Relay,
    Section,
    network_of,
    relays_of,
)
from pipelocal.objective.loco import LoCo
from pipelocal.objective.pgl import PGL
from pipelocal.objective.reconciliation import WEIGHT_SCHEDULES, Reconciliation
from pipelocal.objective.sgr import SGR
from pipelocal.objective.way_back import SendsBack, WayBack, way_back_of
from pipelocal.registry import Registry

OBJECTIVES: Registry[object] = Registry("objective", takes=None)
"""Each is a recipe or the class of one; see :func:`~pipelocal.objective.greedy.as_recipe`."""

OBJECTIVES.register("greedy")(Greedy())
OBJECTIVES.register("sgr")(SGR)
OBJECTIVES.register("infopro")(InfoPro)
OBJECTIVES.register("bwbpf")(BWBPF)
OBJECTIVES.register("deep-supervision")(DeepSupervision)
OBJECTIVES.register("lg-fg")(LGFG)
OBJECTIVES.register("contsup")(ContSup)
OBJECTIVES.register("anp")(ANP)
OBJECTIVES.register("loco")(LoCo)
OBJECTIVES.register("pgl")(PGL)
OBJECTIVES.register("bp")(BackPropagation())


__all__ = [
    "ANP",
    "BWBPF",
    "DISTANCES",
    "LGFG",
    "OBJECTIVES",
    "PGL",
    "SGR",
    "WEIGHT_SCHEDULES",
    "BackPropagation",
    "DeepSupervision",
    "ContSup",
    "ExactReconciliation",
    "FirstOrderReconciliation",
    "Greedy",
    "InfoPro",
    "LoCo",
    "LocalPass",
    "Objective",
    "ObjectiveRecipe",
    "Place",
    "Reconciliation",
    "Relay",
    "Section",
    "SendsBack",
    "WayBack",
    "as_recipe",
    "network_of",
    "relays_of",
    "way_back_of",
]
