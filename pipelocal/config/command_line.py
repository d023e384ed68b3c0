"""From the words of a command line to options."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

import tyro

from pipelocal.config.doctor import DoctorConfig
from pipelocal.config.finished_run import EvaluateConfig, ExportConfig, TimelineConfig
from pipelocal.config.plan import PlanConfig
from pipelocal.config.toml_file import read_toml
from pipelocal.config.train import TrainConfig
from pipelocal.system.paths import home_expanded, with_home

Command = (
    Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[ExportConfig, tyro.conf.subcommand("export")]
    | Annotated[PlanConfig, tyro.conf.subcommand("plan")]
    | Annotated[TimelineConfig, tyro.conf.subcommand("timeline")]
    | Annotated[DoctorConfig, tyro.conf.subcommand("doctor")]
)

AnyConfig = TrainConfig | EvaluateConfig | ExportConfig | PlanConfig | TimelineConfig | DoctorConfig

NOT_GIVEN = "\0"
"""What no word of a command line can hold."""
NARROWEST = 40
"""Columns in which help and errors can be set; in 1 the setting does not end."""


OptionsOf = Callable[[str], TrainConfig]


def parse(arguments: Sequence[str], *, options_of: OptionsOf, quiet: bool = False) -> AnyConfig:
    """Options from the command line, over those of ``--config`` and ``--resume``, over the defaults.

    Args:
        arguments: the words after ``pipelocal``.
        options_of: gives those of the run that ``--resume`` names, as a new one takes them over.
        quiet: print neither help nor what is wrong.

    Raises:
        UserError: what ``--config`` or ``--resume`` names cannot be used, or a path is blank.
        SystemExit: help was asked for, or the words make no command.
    """
    with _wide_enough():
        if list(arguments[:1]) == ["train"]:
            return with_home(_parse_train(arguments[1:], options_of, quiet=quiet))
        return with_home(
            tyro.cli(
                Command,
                prog="pipelocal",
                description="Pipeline-parallel training without a global backward pass.",
                args=arguments,
                console_outputs=not quiet,
            )
        )


def _parse_train(arguments: Sequence[str], options_of: OptionsOf, *, quiet: bool) -> TrainConfig:
    def over(defaults: TrainConfig) -> TrainConfig:
        return tyro.cli(
            TrainConfig,
            prog="pipelocal train",
            args=arguments,
            default=defaults,
            console_outputs=not quiet,
        )

    # Twice, so that --config and --resume are found as every other option is.
    first = over(TrainConfig())
    options = {} if first.config is None else read_toml(home_expanded(first.config))
    if first.resume == options.get("resume", "auto") == "auto":
        return over(TrainConfig(**options))
    given = over(TrainConfig(resume=NOT_GIVEN, stages=-1, balance=NOT_GIVEN))
    resume = options["resume"] if given.resume == NOT_GIVEN else given.resume
    if resume in ("auto", "never") or not resume.strip():
        return over(TrainConfig(**options))
    run = options_of(home_expanded(resume))
    if given.stages != -1 or given.balance != NOT_GIVEN or {"stages", "balance"} & options.keys():
        run = replace(run, cut=None)  # which would override them
    return over(replace(run, **options))


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
