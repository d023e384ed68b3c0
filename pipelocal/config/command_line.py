"""Parses the command line into options."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Literal, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from pipelocal.config.doctor import DoctorConfig
from pipelocal.config.finished_run import (
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    ReportConfig,
    TimelineConfig,
)
from pipelocal.config.launch import LaunchConfig
from pipelocal.config.panels import in_panels, out_of_panels, panels
from pipelocal.config.plan import PlanConfig
from pipelocal.config.toml_file import read_toml
from pipelocal.config.train import TrainConfig
from pipelocal.system.paths import given_path, home_expanded, with_home

Command = (
    Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[ExportConfig, tyro.conf.subcommand("export")]
    | Annotated[PlanConfig, tyro.conf.subcommand("plan")]
    | Annotated[ReportConfig, tyro.conf.subcommand("report")]
    | Annotated[CompareConfig, tyro.conf.subcommand("compare")]
    | Annotated[TimelineConfig, tyro.conf.subcommand("timeline")]
    | Annotated[DoctorConfig, tyro.conf.subcommand("doctor")]
    | Annotated[LaunchConfig, tyro.conf.subcommand("launch")]
)

AnyConfig = (
    TrainConfig
    | EvaluateConfig
    | ExportConfig
    | PlanConfig
    | ReportConfig
    | CompareConfig
    | TimelineConfig
    | DoctorConfig
    | LaunchConfig
)

NOT_GIVEN = "\0"
"""A value that no word of a command line can have."""
NARROWEST = 40
"""Least columns for help and errors; with 1 the layout never ends."""


WORDS = ConstructorRegistry()
"""Parsers of options with fixed words."""


@WORDS.primitive_rule
def _any_word(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str] | None:
    """Show the fixed words of an option, but accept any; all ranks check them with the other options."""
    if get_origin(kind.type) is not Literal:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(get_args(kind.type))}}}",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )


OptionsOf = Callable[[str], TrainConfig]


def parse(arguments: Sequence[str], *, options_of: OptionsOf, quiet: bool = False) -> AnyConfig:
    """Parse options: the command line overrides ``--config`` and ``--resume``, which override defaults.

    Args:
        arguments: the words after ``pipelocal``.
        options_of: gives those of the run that ``--resume`` names, as a new one takes them over.
        quiet: whether to print neither help nor errors.

    Raises:
        UserError: what ``--config`` or ``--resume`` names cannot be used, or a path is blank.
        SystemExit: help was requested, or the words are not a valid command.
    """
    with _wide_enough(), WORDS:
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
    # Hidden options cannot be given either, so all are included except for the short help.
    everything = "--help-all" in arguments or not {"-h", "--help"} & set(arguments)
    words = ["--help" if word == "--help-all" else word for word in arguments]

    def over(defaults: TrainConfig) -> TrainConfig:
        parsed = tyro.cli(
            panels(everything=everything),
            prog="pipelocal train",
            args=words,
            default=in_panels(defaults, everything=everything),
            console_outputs=not quiet,
            config=(tyro.conf.HelptextFromCommentsOff,),  # the panels bring their help along
        )
        return out_of_panels(parsed)

    # Parse again with what --config and --resume hold, so that these are found like every other option.
    first = over(TrainConfig())
    options = {} if first.config is None else read_toml(given_path("--config", first.config))
    if first.resume == options.get("resume", "auto") == "auto":
        return over(TrainConfig(**options)) if options else first
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
    """Pretend that a very narrow terminal is wider."""
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
