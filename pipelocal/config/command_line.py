"""From the words of a command line to options."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import tyro

from pipelocal.config.doctor import DoctorConfig
from pipelocal.config.finished_run import EvaluateConfig, ExportConfig, TimelineConfig
from pipelocal.config.plan import PlanConfig
from pipelocal.config.toml_file import load_toml
from pipelocal.config.train import TrainConfig
from pipelocal.paths import home_expanded, with_home

Command = (
    Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[ExportConfig, tyro.conf.subcommand("export")]
    | Annotated[PlanConfig, tyro.conf.subcommand("plan")]
    | Annotated[TimelineConfig, tyro.conf.subcommand("timeline")]
    | Annotated[DoctorConfig, tyro.conf.subcommand("doctor")]
)

AnyConfig = TrainConfig | EvaluateConfig | ExportConfig | PlanConfig | TimelineConfig | DoctorConfig

NARROWEST = 40
"""Columns in which help and errors can be set; in 1 the setting does not end."""


def parse(arguments: Sequence[str], *, quiet: bool = False) -> AnyConfig:
    """Options from the command line, over those of a ``--config`` file, over the defaults.

    Args:
        arguments: the words after ``pipelocal``.
        quiet: print neither help nor what is wrong.

    Raises:
        UserError: the file of ``--config`` cannot be used, or a path is blank.
        SystemExit: help was asked for, or the words make no command.
    """
    with _wide_enough():
        if list(arguments[:1]) == ["train"]:
            return with_home(_parse_train(arguments[1:], quiet=quiet))
        return with_home(
            tyro.cli(
                Command,
                prog="pipelocal",
                description="Pipeline-parallel training without a global backward pass.",
                args=arguments,
                console_outputs=not quiet,
            )
        )


def _parse_train(arguments: Sequence[str], *, quiet: bool) -> TrainConfig:
    def over(defaults: TrainConfig) -> TrainConfig:
        return tyro.cli(
            TrainConfig,
            prog="pipelocal train",
            args=arguments,
            default=defaults,
            console_outputs=not quiet,
        )

    # Twice, so that --config is found as every other option is.
    path = over(TrainConfig()).config
    return over(TrainConfig() if path is None else load_toml(home_expanded(path)))


@contextmanager
def _wide_enough() -> Iterator[None]:
    """Show a wider terminal than there is if it has next to no columns."""
    before = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns >= NARROWEST:
        yield
        return
    os.environ["COLUMNS"] = str(NARROWEST)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
