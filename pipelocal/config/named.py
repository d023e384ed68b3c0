"""Options that name something: an entry of a registry, or by reference something of the user's own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pipelocal.config.train import DELTA_NUMBERS, TrainConfig
from pipelocal.data import DATASETS
from pipelocal.heads import HEADS
from pipelocal.loggers.registry import listed
from pipelocal.models import MODELS
from pipelocal.objective import DISTANCES, OBJECTIVES, PGL, SGR, WEIGHT_SCHEDULES
from pipelocal.objective.delta_encoding import SUMMARIES
from pipelocal.objective.options import described_options, is_recipe_class
from pipelocal.options import Number, numbers_of, without_number
from pipelocal.partition.partitioners import PARTITIONERS
from pipelocal.references import is_reference, plain_name
from pipelocal.registry import Registry
from pipelocal.replicas.compression import COMPRESSIONS
from pipelocal.replicas.options import NUMBERS as COMPRESSION_NUMBERS
from pipelocal.stage.lr_schedule import LR_SCHEDULES
from pipelocal.stage.optimizers import OPTIMIZERS
from pipelocal.tasks.registry import LOSSES, TASKS
from pipelocal.transport.packing import PACKINGS

REGISTRIES: dict[str, Registry[Any]] = {
    "model": MODELS,
    "data": DATASETS,
    "task": TASKS,
    "loss": LOSSES,
    "objective": OBJECTIVES,
    "head": HEADS,
    "distance": DISTANCES,
    "reconcile_schedule": WEIGHT_SCHEDULES,
    "optimizer": OPTIMIZERS,
    "schedule": LR_SCHEDULES,
    "wire": PACKINGS,
    "delta": SUMMARIES,
    "balance": PARTITIONERS,
    "compress": COMPRESSIONS,
}
"""What knows the names, by option."""

NUMBERS: dict[str, dict[str, Number]] = {"compress": COMPRESSION_NUMBERS, "delta": DELTA_NUMBERS}
"""The options in which a number may stand behind a name."""

WHERE_NEEDED = {"model", "head", "balance"}
"""Options whose references are imported only where they are needed: the model when the data are known, a
head by no rank of the last stage alone, a partitioner by rank 0."""


ITS_OPTIONS: dict[type, tuple[str, ...]] = {
    SGR: (
        "reconcile",
        "distance",
        "reconcile_weight",
        "reconcile_schedule",
        "reconcile_every",
        "reconcile_fraction",
        "delta",
    ),
    PGL: ("guide_every",),
}
"""Recipes whose options are options of the command line, which these are."""


def check_names(config: TrainConfig) -> None:
    """Refuse names that stand for nothing.

    Raises:
        UserError: says which, and what there is; or why a reference cannot be imported.
    """
    for option, registry in REGISTRIES.items():
        name = getattr(config, option)
        if name is None:
            continue
        if option in NUMBERS:
            registry.check(without_number(name))
            numbers_of(option, name, NUMBERS[option])
            name = without_number(name)
        if option in WHERE_NEEDED:
            registry.check(name)
        else:
            registry.get(name)
    listed(config.log)  # which rank 0 alone imports


def described_objectives() -> str:
    """The options of each objective of the registry, but of those whose are options of the command line."""
    classes: dict[str, Any] = {name: OBJECTIVES.get(name) for name in OBJECTIVES}
    return "".join(
        f" {name}: {described_options(recipe)}."
        for name, recipe in classes.items()
        if is_recipe_class(recipe) and fields(recipe) and recipe not in ITS_OPTIONS
    )


def references(config: TrainConfig) -> dict[str, str]:
    """The references among the options, by option."""
    named = {option: getattr(config, option) for option in REGISTRIES}
    return {
        option: name
        for option, name in named.items()
        if name and name not in REGISTRIES[option] and is_reference(name)
    }


def plain_references(config: TrainConfig) -> dict[str, str]:
    """The same, wherever their files lie: their code is looked at apart."""
    return {option: plain_name(name) for option, name in references(config).items()}
