"""Objectives by which stages are trained: ``Pipeline(objective=pipelocal.objectives.SGR(every=8))``.

Each is a recipe whose arguments are its options; ``docs/methods`` has a page for each.
"""

from pipelocal.objective import (
    ANP,
    BWBPF,
    LGFG,
    PGL,
    SGR,
    BackPropagation,
    ContSup,
    DeepSupervision,
    Greedy,
    InfoPro,
    LoCo,
)

__all__ = [
    "ANP",
    "BWBPF",
    "LGFG",
    "PGL",
    "SGR",
    "BackPropagation",
    "ContSup",
    "DeepSupervision",
    "Greedy",
    "InfoPro",
    "LoCo",
]
