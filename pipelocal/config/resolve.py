"""From names to objects: what the options of a training stand for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pipelocal.checkpoint.description import ModelDescription
from pipelocal.config.named import ITS_OPTIONS, REGISTRIES, plain_references, references
from pipelocal.config.train import DELTA_NUMBERS, TrainConfig
from pipelocal.data import DataInfo
from pipelocal.data.batches import Batches
from pipelocal.data.in_time import patience_of
from pipelocal.data.opening import NamedData
from pipelocal.errors import UserError
from pipelocal.heads import HEADS, HeadBuilder, auto
from pipelocal.heads.guided import guided_every
from pipelocal.loggers.registry import listed
from pipelocal.models import Chain, build_chain
from pipelocal.models.inputs import check_beside
from pipelocal.objective import OBJECTIVES, PGL, SGR, Objective, ObjectiveRecipe, Place, as_recipe
from pipelocal.objective.greedy import EachStage
from pipelocal.objective.options import OPTION, is_recipe_class, options_from
from pipelocal.options import (
    listed_numbers,
    names_that,
    numbers_of,
    option_name,
    without_number,
)
from pipelocal.partition.partitioners import PARTITIONERS
from pipelocal.references import returned, users_code
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.costs import CutRequest
from pipelocal.run.spec import Spec
from pipelocal.stage.freezing import Freezing, parse_freezing
from pipelocal.stage.lr_schedule import LR_SCHEDULES, scheduled
from pipelocal.stage.optimizers import OPTIMIZERS
from pipelocal.stage.recipe import Recipe, takes_two
from pipelocal.system.quantities import parse_bytes, parse_speeds, parse_weights
from pipelocal.tasks import Task
from pipelocal.tasks.registry import task_named, with_smoothing
from pipelocal.tasks.supcon import with_contrast

IMAGINED = "planned"
"""Name of data that are only described, to plan for."""


def spec_of(config: TrainConfig, *, info: DataInfo | None = None) -> Spec:
    """What a run is made of; the options are known to be valid.

    Args:
        config: the options.
        info: what the model is fed; by default what ``--data`` holds.
    """
    data = data_of(config)
    return Spec(
        recipe=recipe_of(config),
        options=config,
        cut=cut_of(config),
        chain=partial(chain_of, config),
        info=data.info if info is None else info,
        batches=data.batches,
        describe_model=partial(ModelDescription.of, config.model),
        text=text_of(config),
        defaults=text_of(TrainConfig()),
        references=references(config),
        named=frozenset(REGISTRIES),
        anywhere=names_that(config, "of_the_bits"),
        own=own_names(config),
        init=config.init,
        out=config.out,
        log=listed(config.log),
    )


def text_of(config: TrainConfig) -> dict[str, object]:
    """The options as plain values, as a run folder keeps them."""
    return {name: value for name, value in asdict(config).items() if name != "config"}


def compared_text(config: TrainConfig) -> dict[str, object]:
    """The same as ranks compare it, wherever their files lie."""
    plain = {**text_of(config), **plain_references(config)}
    return plain if config.init is None else {**plain, "init": Path(config.init).name}


def own_names(config: TrainConfig) -> frozenset[str]:
    """The options in which ranks may differ."""
    return names_that(config, "alike")


def recipe_of(config: TrainConfig) -> Recipe:
    """What every stage is made of."""
    schedule = LR_SCHEDULES.get(config.schedule)
    of_batches = not takes_two(schedule)
    task = task_of(config)
    return Recipe(
        task=task,
        head_task=head_task_of(config, task),
        head=head_of(config),
        objective=objective_of(config),
        optimizer=partial(optimizer_of, config),
        schedule=partial(scheduled, factor=schedule, warmup_steps=config.warmup_steps)
        if of_batches
        else schedule,
        counts_batches=of_batches,
        transport_penalty=config.transport_penalty,
        clip=config.clip_norm,
        ema=config.ema,
        freezing=partial(freezing_of, config),
        seed=config.seed,
        compute=config,
    )


def head_task_of(config: TrainConfig, task: Task) -> Task | None:
    """The task by whose loss auxiliary heads train; None for the task itself.

    Raises:
        UserError: the task has no such loss.
    """
    smoothed = with_smoothing(task, config.head_smoothing) if config.head_smoothing else None
    return smoothed if config.head_loss == "task" else with_contrast(smoothed or task)


def head_of(config: TrainConfig) -> HeadBuilder:
    """What builds the auxiliary heads."""
    if config.head == "auto":
        return partial(auto, budget=config.head_budget)
    builder = HEADS.later(config.head)
    if guided_every(builder) is None:
        return builder
    return partial(builder, every=config.guide_every)


def task_of(config: TrainConfig) -> Task:
    """What is learnt; of text the next token, if the options do not say."""
    by_default = "next-token" if config.data.startswith("text") else "classification"
    return task_named(config.task or by_default, config.loss)


def optimizer_of(
    config: TrainConfig, named: Iterable[tuple[str, nn.Parameter]], place: Place
) -> torch.optim.Optimizer:
    """A stage's optimizer."""
    build = OPTIMIZERS.get(config.optimizer)
    asked = inspect.signature(build).parameters
    offered = {name: getattr(config, name) for name in ("weight_decay", "momentum", "fused")}
    offered["lr"] = rates_of(config, place.stages)[place.number - 1]
    with users_code("optimizer", config.optimizer):
        made = build(named, **{name: offered[name] for name in offered.keys() & asked.keys()})
        return returned(made, torch.optim.Optimizer)


def rates_of(config: TrainConfig, stages: int) -> list[float]:
    """The learning rate of every stage.

    Raises:
        UserError: there are several, but not one for each stage.
    """
    rates = listed_numbers("lr", config.lr)
    if len(rates) not in (1, stages):
        wanted = f", or {stages} with commas between them, one for each stage" if stages > 1 else ""
        raise UserError(f"--lr {config.lr}: give one number{wanted}")
    return rates * stages if len(rates) == 1 else rates


def objective_of(config: TrainConfig) -> ObjectiveRecipe:
    """What stages are trained by, with its options.

    Raises:
        UserError: it has no such options.
    """
    name, given = config.objective, config.objective_options
    found: Any = OBJECTIVES.get(name)
    if given and isinstance(found, type) and found in ITS_OPTIONS:
        own = ", ".join(map(option_name, ITS_OPTIONS[found]))
        raise UserError(f"{OPTION} {' '.join(given)}: those of {name} are {own}: give these")
    if found is SGR:
        return _reconciling(config)
    if found is PGL:
        return PGL(every=config.guide_every)
    with users_code("objective", name):
        made = not isinstance(found, type) and hasattr(found, "for_stage")  # and takes nothing more
        if given and made:
            raise UserError(f"{OPTION} {' '.join(given)}: {name} has none: leave them out")
        options = options_from(found, given, name=name) if given else {}
        recipe = as_recipe(found(**options) if is_recipe_class(found) else found)
    if isinstance(recipe, EachStage):  # whose failures are the user's own code's
        later = cast(Callable[..., Objective], OBJECTIVES.later(name))
        return replace(recipe, make=partial(later, **options))
    return recipe


def _reconciling(config: TrainConfig) -> SGR:
    """SGR, as its options say."""
    text = config.reconcile_weight
    weights = parse_weights("--reconcile-weight", text, text.count(",") + 1)
    return SGR(
        weight=weights[0] if len(weights) == 1 else tuple(weights),
        every=config.reconcile_every,
        distance=config.distance,
        form=config.reconcile,
        fraction=config.reconcile_fraction,
        schedule=config.reconcile_schedule,
        delta=without_number(config.delta),
        delta_size=int(numbers_of("delta", config.delta, DELTA_NUMBERS)["sketch"]),
    )


def freezing_of(config: TrainConfig, stages: int) -> dict[int, Freezing]:
    """What says when a stage is frozen, by its number.

    Raises:
        UserError: the option is no list of stages and batches, or names a stage there is not.
    """
    if config.freeze_stage is None:
        return {}
    return parse_freezing(config.freeze_stage, stages=stages)


def cut_of(config: TrainConfig) -> CutRequest:
    """Where the model is to be cut."""
    limit, speeds = config.memory_limit, config.device_speeds
    return CutRequest(
        stages=config.stages,
        cut=config.cut,
        partitioner=PARTITIONERS.later(config.balance),
        name=config.balance,
        measured=config.balance != "count",
        memory_limit=None if limit is None else parse_bytes("--memory-limit", limit),
        speeds=None
        if speeds is None
        else tuple(parse_speeds("--device-speeds", speeds, config.stages)),
    )


def chain_of(config: TrainConfig, info: DataInfo) -> Chain:
    """The model for data like this.

    Raises:
        UserError: it cannot be made, or is for data of another kind.
    """
    if config.task is None and config.loss is None and info.target_dtype.is_floating_point:
        raise UserError(
            f"the targets of data set '{info.name}' are numbers: say what is to be learnt, with --task "
            f"regression or multi-label"
        )
    task = task_of(config)
    classes = task.width(task.output_shape(info, None))
    chain = build_chain(
        config.model, input_shape=info.sample_shape, classes=classes, seed=config.seed
    )
    _check_sample_dtype(chain, config.model, info)
    if info.name != IMAGINED:  # whose further inputs are as the model has them
        check_beside(chain.inputs, info.beside)
    return chain


def blueprint_of(config: TrainConfig, *, info: DataInfo | None = None) -> Blueprint:
    """The model as the options cut it, before anything is measured; holds no parameters.

    Args:
        config: the options.
        info: what the model is fed; by default what ``--data`` holds.

    Raises:
        UserError: the model cannot be made for this data, or not be cut like that.
    """
    info = info_of(config) if info is None else info
    return spec_of(config, info=info).draw(info)


def info_of(config: TrainConfig) -> DataInfo:
    """What the data is like."""
    return data_of(config).info()


def data_of(config: TrainConfig) -> NamedData:
    """The data that the options name; nothing is read yet."""
    return NamedData(
        config,
        config.seed,
        steps=None if config.max_steps is None else -(-config.max_steps // config.epochs),
        patience_s=patience_of(config.timeout),
    )


def open_data(config: TrainConfig) -> Batches:
    """Its batches."""
    return data_of(config).batches()


def _check_sample_dtype(chain: Chain, model: str, info: DataInfo) -> None:
    """A model of the registry says what it takes; a user's own is given what the data has."""
    if ":" in model and chain.input_dtype == torch.float32:  # which says nothing
        chain.input_dtype = info.sample_dtype
    elif ":" in model and info.name == IMAGINED:
        return
    elif chain.input_dtype != info.sample_dtype:
        kinds = {torch.int64: "tokens", torch.float32: "images or vectors"}
        fitting = "gpt, lstm or gru" if info.tokens else "mlp or a resnet"
        raise UserError(
            f"model '{model}' takes {kinds.get(chain.input_dtype, chain.input_dtype)}, but data set "
            f"'{info.name}' holds {kinds[info.sample_dtype]}: choose a model such as {fitting}"
        )
