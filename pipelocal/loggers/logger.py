"""The interface of a logger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Record = dict[str, Any]
"""A line of ``metrics.jsonl``: ``event``, ``stage`` and the figures, of which None means unknown."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """What a logger is told of the run."""

    title: str
    """Model, data and objective in one line."""
    folder: Path | None
    """The run's folder; None if the run keeps none."""
    options: Mapping[str, Any]
    """The run's options, as ``config.toml`` has them."""
    earlier: int = 0
    """How many records an earlier process has left, if the run goes on: the logger is given these first."""


class Logger(Protocol):
    """Takes the records of a run: on rank 0, on a thread of its own, one after the other.

    Records are exactly those of ``metrics.jsonl``, from the first on, also where a run goes on. An exception
    ends the logger, not the run.
    """

    def start(self, run: LoggedRun) -> None:
        """Called once for each run, before its first record."""

    def record(self, record: Record) -> None:
        """Take one record, which is the logger's own copy."""

    def close(self) -> None:
        """Called once when the run has ended, or has failed, or after an exception of this logger."""


def numbers(record: Record) -> dict[str, float]:
    """Return the numbers of a record as ``loss/stage-1``, for services that keep a curve under each name.

    Figures of an evaluation are called ``eval_loss`` and the like; those of other events, such as ``final``,
    begin with the event and a slash.
    """
    event = record["event"]
    if event == "begin":
        return {}  # what a stage is made of is no curve
    prefix = {"train": "", "evaluate": "eval_"}.get(event, f"{event}/")
    replica = f"-replica-{record['replica'] + 1}" if record.get("replica") else ""
    found: dict[str, Any] = {}
    for name, value in record.items():
        found |= (
            {f"{name}_{k}": v for k, v in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return {
        f"{prefix}{name}/stage-{record['stage']}{replica}": float(value)
        for name, value in found.items()
        if name not in _WHEREABOUTS and isinstance(value, int | float)
    }


def step_of(record: Record) -> int:
    """Training batches before a record."""
    return int(record["step"] if "step" in record else record["steps"])


_WHEREABOUTS = {"event", "stage", "step", "steps", "epoch", "time_s", "rank", "replica"}
