"""Refuses invalid options before anything is started, with one clear line each."""

from __future__ import annotations

from dataclasses import asdict, fields

from pipelocal.config.named import ITS_OPTIONS, check_names
from pipelocal.config.resolve import freezing_of, rates_of, recipe_of
from pipelocal.config.train import TrainConfig
from pipelocal.errors import UserError
from pipelocal.heads import HEADS
from pipelocal.heads.auto import DEFAULT_BUDGET
from pipelocal.heads.guided import guided_every
from pipelocal.objective import OBJECTIVES
from pipelocal.options import MOST_BATCHES, check_values, option_name
from pipelocal.partition.partitioners import PARTITIONERS, WITHOUT_EFFECT
from pipelocal.partition.replicas import parse_replicas
from pipelocal.run.combinations import check_combinations, check_stages
from pipelocal.system.names import unwritable
from pipelocal.system.quantities import parse_bytes, parse_speeds, parse_weights


def validate(config: TrainConfig) -> None:
    """Refuse options that cannot work, before anything is started.

    Raises:
        UserError: an option is out of range or unknown, or two are mutually exclusive.
    """
    check_options(config)
    recipe = recipe_of(config)
    check_combinations(config, recipe)
    if config.cut is None:  # which says itself how many stages there are
        check_stages(recipe, config.stages)


def check_options(config: TrainConfig) -> None:
    """Refuse single options that cannot work, whatever the other options.

    Raises:
        UserError: an option is invalid; names it, its value, and what is valid.
    """
    for name, value in asdict(config).items():
        for text in (
            (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ()
        ):
            _check_text(option_name(name), text)
    check_names(config)
    check_values(config)
    if config.cut is not None and not config.cut.strip():
        raise UserError("--cut '' names no unit: leave it out; one stage is --stages 1")
    if config.init is not None and config.resume not in ("auto", "never"):
        raise UserError(
            f"--init {config.init} and --resume {config.resume}: both say what to begin with: give one"
        )
    if config.head != "auto" and config.head_budget != DEFAULT_BUDGET:
        raise UserError(
            f"--head-budget {config.head_budget:g} is for --head auto, not {config.head}: leave one out"
        )
    _check_its_options(config)
    _check_balance(config)
    parse_replicas("--replicas", config.replicas, None)
    _check_updates(config)
    if config.cut is None:  # which says itself how many stages there are
        stages = 1 if recipe_of(config).uncut else config.stages
        config.replica_counts(stages)
        parse_weights("--reconcile-weight", config.reconcile_weight, config.stages - 1)
        freezing_of(config, stages)
        rates_of(config, stages)


def _check_its_options(config: TrainConfig) -> None:
    """Refuse options of one objective beside another, which would do nothing."""
    usual = {field.name: field.default for field in fields(config)}
    for recipe, options in ITS_OPTIONS.items():
        if OBJECTIVES.get(config.objective) is recipe:
            continue
        for name in options:
            if name == "guide_every" and guided_every(HEADS.later(config.head)) is not None:
                continue
            if (value := getattr(config, name)) != usual[name]:
                raise UserError(
                    f"{option_name(name)} {value} is for --objective {OBJECTIVES.name_of(recipe)}, not "
                    f"{config.objective}: leave one of them out"
                )


def _check_text(option: str, text: str) -> None:
    """Refuse text that cannot be printed or written to the run's TOML file; any script is allowed."""
    bad = unwritable(text)
    if bad is not None:
        raise UserError(
            f"{option} {text!a}: give text without line breaks and control characters, in UTF-8, not with "
            f"{bad!a}"
        )


def _check_updates(config: TrainConfig) -> None:
    if config.batches_an_update > MOST_BATCHES:
        raise UserError(
            f"--accumulate {config.accumulate} --replicas {config.replicas}: an update of "
            f"{config.batches_an_update} batches never comes: give smaller numbers"
        )


def _check_balance(config: TrainConfig) -> None:
    for name, part in (("memory_limit", "memory_limit"), ("device_speeds", "speeds")):
        other = WITHOUT_EFFECT[part]
        if getattr(config, name) is not None and config.balance in other:
            fitting = [balance for balance in PARTITIONERS if balance not in other]
            raise UserError(f"{option_name(name)} is for --balance {' or '.join(fitting)}: add it")
    if config.memory_limit is not None:
        parse_bytes("--memory-limit", config.memory_limit)
    if config.device_speeds is not None:
        parse_speeds("--device-speeds", config.device_speeds, config.stages)
