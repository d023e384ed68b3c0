"""Options that are out of range or unknown, one by one: one clear line each, before anything is started."""

from __future__ import annotations

from dataclasses import asdict

import torch

from pipelocal.config.combinations import check_combinations
from pipelocal.config.limits import MOST_BATCHES, check_limits
from pipelocal.config.named import check_names
from pipelocal.config.option_name import option_name
from pipelocal.config.train import TrainConfig
from pipelocal.errors import UserError
from pipelocal.partition.partitioners import PARTITIONERS
from pipelocal.partition.replicas import parse_replicas
from pipelocal.system.names import unwritable
from pipelocal.system.quantities import parse_bytes, parse_speeds
from pipelocal.transport.connect import EDGES

AUTOCAST = {"bf16": torch.bfloat16}
"""What --autocast takes."""

CHOICES: dict[str, tuple[str, ...]] = {
    "reconcile": ("first-order", "exact"),
    "edge": EDGES,
    "replicate": ("ddp", "fsdp"),
    "votes": ("auto", "on", "off"),
}
"""Options whose words are fixed."""


def validate(config: TrainConfig) -> None:
    """Refuse what cannot work, before anything is started.

    Raises:
        UserError: an option is out of range or unknown, or two exclude each other.
    """
    check_options(config)
    check_combinations(config)


def check_options(config: TrainConfig) -> None:
    """Refuse what cannot work, whatever the other options.

    Raises:
        UserError: names the option, what was given, and what is wanted.
    """
    for name, value in asdict(config).items():
        if isinstance(value, str):
            _check_text(option_name(name), value)
    check_names(config)
    for name, known in CHOICES.items():
        if (value := getattr(config, name)) not in known:
            raise UserError(f"{option_name(name)} {value}: choose one of {', '.join(known)}")
    if config.autocast is not None and config.autocast not in AUTOCAST:
        raise UserError(f"--autocast {config.autocast}: choose one of {', '.join(AUTOCAST)}")
    check_limits(config)
    _check_balance(config)
    parse_replicas("--replicas", config.replicas, None)
    _check_updates(config)
    if config.cut is None:  # which says itself how many stages there are
        stages = 1 if config.objective == "bp" else config.stages
        config.replica_counts(stages)
        config.reconcile_weights(config.stages)
        config.freezing(stages)


def _check_text(option: str, text: str) -> None:
    """Refuse what neither a line of output nor the run's TOML file can hold; names in any script can be."""
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
    for name, other in (("memory_limit", ("count",)), ("device_speeds", ("count", "memory"))):
        if getattr(config, name) is not None and config.balance in other:
            fitting = [balance for balance in PARTITIONERS if balance not in other]
            raise UserError(f"{option_name(name)} is for --balance {' or '.join(fitting)}: add it")
    if config.memory_limit is not None:
        parse_bytes("--memory-limit", config.memory_limit)
    if config.device_speeds is not None:
        parse_speeds("--device-speeds", config.device_speeds, config.stages)
