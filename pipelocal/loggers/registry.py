"""Loggers by name, as the command line and Python take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipelocal.errors import UserError
from pipelocal.loggers.csv_file import CsvFile
from pipelocal.loggers.logger import Logger
from pipelocal.loggers.tensorboard import TensorBoard
from pipelocal.loggers.wandb import WeightsAndBiases
from pipelocal.references import told
from pipelocal.registry import Registry
from pipelocal.seeding import undone
from pipelocal.system.describing import described
from pipelocal.system.paths import home_expanded

LOGGERS: Registry[Any] = Registry("logger", takes=None)
"""Loggers, and functions or classes that make one when called with nothing."""

LOGGERS.register("tensorboard")(TensorBoard)
LOGGERS.register("wandb")(WeightsAndBiases)
LOGGERS.register("csv")(CsvFile)

METHODS = ("start", "record", "close")

One = str | Logger | Callable[[], Logger]
Given = One | Sequence[One] | None
"""Names with commas between them, or a logger or what makes one, or a list of such."""


def listed(given: Given) -> tuple[Any, ...]:
    """Return the names and loggers that were given, one by one; imports nothing.

    Raises:
        UserError: a name is blank, unknown or there twice.
    """
    if given is None:
        return ()
    if isinstance(given, str):
        each: list[Any] = given.split(",")
    else:
        each = list(given) if isinstance(given, list | tuple) else [given]
    found = [home_expanded(one.strip()) if isinstance(one, str) else one for one in each]
    for place, one in enumerate(found):
        if one == "":
            raise UserError(
                f"--log {given}: give names with commas between them, such as tensorboard,csv"
            )
        if isinstance(one, str):
            LOGGERS.check(one)
            if one in found[:place]:
                raise UserError(f"--log names {one} twice: leave one out")
    return tuple(found)


def as_text(given: Given) -> str | None:
    """Return what was given as text, as a run folder keeps it; None for nothing."""
    return ",".join(map(described, listed(given))) or None


def opened(given: Given, *, keeps: bool) -> list[tuple[str, Logger]]:
    """Make the loggers that were given, each with its name.

    Args:
        given: names and loggers.
        keeps: whether the run has a folder.

    Raises:
        UserError: one cannot be made, for example because its package is missing; or it is no logger, or
            needs the folder that there is not.
    """
    found = []
    for one in listed(given):
        thing = LOGGERS.get(one) if isinstance(one, str) else one
        name = one if isinstance(one, str) else getattr(one, "__name__", type(one).__name__)
        if isinstance(thing, type) or (callable(thing) and not hasattr(thing, "record")):
            thing = _made(name, thing)
        lacking = [each for each in METHODS if not callable(getattr(thing, each, None))]
        if lacking:
            raise UserError(
                f"logger '{name}' has no method {lacking[0]}: give an object with start(run), "
                f"record(record) and close(), or what makes one when it is called with nothing"
            )
        if not keeps and getattr(thing, "needs_folder", False):
            raise UserError(f"logger '{name}' writes to the run's folder: give fit(out=...) too")
        found.append((name, thing))
    return found


def _made(name: str, make: Callable[[], Any]) -> Any:
    try:
        with undone():
            return make()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"logger '{name}' cannot be made: {told(error)}") from error
