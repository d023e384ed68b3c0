"""What the study trains: settings, and the cells in them, by rounds.

A setting is a model, its number of stages and an optimizer; a cell is a head and a form of reconciliation
in a setting. Rounds, each of which builds on the runs of those before it:

screen
    one setting, one seed: every head and distance, the likeliest weights, every batch and every eighth
fine
    further weights there
vary
    what looks best for each head there, with other schedules, and in the last stages only
carry
    a smaller grid in the other settings, on one seed
repeat
    what looks best of all that on further seeds, paired with greedy on the same seeds
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

HERE = "benchmarks/reconciliation"
"""Where the study's own models and head are, from the folder in which it is run."""

HEADS = {"linear": "linear", "1x1": f"{HERE}/heads.py:relu_pool", "downstream": "downstream"}
"""Heads by the names that the results give them."""

LEARNING: dict[tuple[str, str], dict[str, Any]] = {
    ("cnn", "sgd"): {"lr": 0.1},
    ("cnn", "adamw"): {"lr": 2e-3, "weight_decay": 0.05},
    ("vit", "sgd"): {"lr": 0.05},
    ("vit", "adamw"): {"lr": 1e-3, "weight_decay": 0.05},
}
"""Learning rate and the like, by model and optimizer: usual values, the same for every objective."""

ROUNDS = ("screen", "fine", "vary", "carry", "repeat")
OFTEN, SELDOM = 1, 8
"""Reconciled is every batch, on all rows; or every eighth, on half of them."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model, its number of stages, and the optimizer."""

    model: str = "cnn"
    stages: int = 4
    optimizer: str = "sgd"

    def __str__(self) -> str:
        return f"{self.model}, {self.stages} stages, {self.optimizer}"


MAIN = Setting()
OTHERS = (
    Setting(stages=9),
    Setting(model="vit", optimizer="adamw"),
    Setting(stages=2),
    Setting(optimizer="adamw"),
    Setting(model="vit"),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A kind of run, all but its seed.

    Args:
        setting: model, stages, optimizer.
        objective: bp, greedy, or sgr.
        head: name in :data:`HEADS`; of bp it is ``-``.
        distance: of sgr.
        weight: lambda, on the scale of per-sample gradients; 0 measures the agreement of greedy's gradients.
        every: batches between two that are reconciled.
        schedule: of the weight.
        where: ``all`` stages, the ``last`` one only, or the last ``half``.
    """

    setting: Setting = MAIN
    objective: str = "sgr"
    head: str = "-"
    distance: str = "cosine"
    weight: float = 0.0
    every: int = SELDOM
    schedule: str = "constant"
    where: str = "all"

    @property
    def form(self) -> str:
        """What tells it from other cells with the same setting and head."""
        if self.objective != "sgr":
            return self.objective
        if self.weight == 0:
            return "greedy, agreement measured"
        when = "every batch" if self.every == OFTEN else f"every {self.every}th"
        parts = [f"{self.distance} {self.weight:g}", when]
        parts += [self.schedule] if self.schedule != "constant" else []
        parts += [f"{self.where} only"] if self.where != "all" else []
        return ", ".join(parts)

    @property
    def base(self) -> Cell:
        """Greedy with the same setting and head."""
        return Cell(setting=self.setting, objective="greedy", head=self.head)

    def options(self) -> dict[str, Any]:
        """Options of ``pipelocal train``."""
        setting = self.setting
        options: dict[str, Any] = {
            "model": f"{HERE}/models.py:{setting.model}",
            "objective": self.objective,
            "optimizer": setting.optimizer,
            **LEARNING[setting.model, setting.optimizer],
        }
        if self.objective == "bp":
            return options
        options |= {"stages": setting.stages, "head": HEADS[self.head]}
        if self.objective == "greedy":
            return options
        return options | {
            "distance": self.distance,
            "reconcile_weight": self._weights(),
            "reconcile_every": self.every,
            "reconcile_fraction": 1.0 if self.every == OFTEN else 0.5,
            "reconcile_schedule": self.schedule,
        }

    def _weights(self) -> str:
        """One weight, or one for each stage but the first."""
        edges = self.setting.stages - 1
        off = {"all": 0, "last": edges - 1, "half": edges // 2}[self.where]
        weight = f"{self.weight:g}"
        return ",".join(["0"] * off + [weight] * (edges - off)) if off else weight


FIRST = (
    ("cosine", 0.01),
    ("squared", 1e-3),
    ("cosine", 0.1),
    ("squared", 1e-2),
    ("relative", 0.01),
)
FURTHER = (
    *(("cosine", 0.001), ("squared", 1e-4), ("relative", 0.1), ("squared", 1e-1)),
    *(("squared", 1e-5), ("relative", 0.001), ("squared", 1e-6)),
)
"""Distances and weights of the rounds ``screen`` and ``fine``."""


def bases(setting: Setting, heads: Sequence[str]) -> list[Cell]:
    """Back-propagation, and greedy with each head, also with its agreement measured."""
    cells = [Cell(setting=setting, objective="bp")]
    cells += [Cell(setting=setting, objective="greedy", head=head) for head in heads]
    return cells + [Cell(setting=setting, head=head) for head in heads]


def screened(heads: Sequence[str]) -> list[Cell]:
    """The round ``screen``."""
    return [*bases(MAIN, heads), *weighted(FIRST, heads)]


def weighted(pairs: Sequence[tuple[str, float]], heads: Sequence[str]) -> list[Cell]:
    """Cells of the main setting, on every batch and on every eighth.

    Args:
        pairs: distances and weights.
        heads: heads.
    """
    return [
        Cell(head=head, distance=distance, weight=weight, every=every)
        for every in (OFTEN, SELDOM)
        for distance, weight in pairs
        for head in heads
    ]


def varied(best: Sequence[Cell]) -> list[Cell]:
    """The round ``vary``.

    Args:
        best: of the rounds before, of every head.
    """
    changes: tuple[dict[str, Any], ...] = (
        *({"schedule": "late"}, {"where": "last"}, {"schedule": "decay"}),
        *({"schedule": "warmup"}, {"where": "half"}),
    )
    return [replace(cell, **change) for change in changes for cell in best]


def carried(heads: Sequence[str]) -> list[Cell]:
    """The round ``carry``."""
    cells = []
    for setting in OTHERS:
        cells += bases(setting, heads)
        for (distance, weight), every in (
            *((pair, OFTEN) for pair in FIRST),
            (("cosine", 0.01), SELDOM),
        ):
            cells += [
                Cell(setting=setting, head=head, distance=distance, weight=weight, every=every)
                for head in heads
            ]
    return cells
