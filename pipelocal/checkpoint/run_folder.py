"""The run folder: options, metrics, summary and the stages' weights.

::

    runs/first/
      config.toml        the resolved options
      run.json           what they referred to: model, data, versions
      metrics.jsonl      a line per stage and interval, and per stage and evaluation
      summary.json       written last: a folder without it holds an unfinished run
      snapshots/         what is needed to continue after some batches
      stages/stage-1.pt  body, head and optimizer of a stage at the end; loads with weights_only=True
"""

from __future__ import annotations

import fcntl
import itertools
import json
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from pipelocal.checkpoint.description import Description
from pipelocal.errors import Passing, UserError
from pipelocal.system.files import write_atomically
from pipelocal.system.paths import check_path
from pipelocal.system.strict_json import to_json
from pipelocal.system.toml import read_toml, to_toml


class RunFolder:
    """Paths and file formats of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.goes_on = False
        """Whether the folder continues a run that began here before."""
        self._lock: TextIO | None = None
        self.numbered = ""
        """Base name for the next free number, if the folder need not be this one."""

    @property
    def metrics(self) -> Path:
        """Path of the file of records."""
        return self.path / "metrics.jsonl"

    @property
    def finished(self) -> bool:
        """Whether the folder holds a finished run."""
        return (self.path / "summary.json").exists()

    @property
    def unfinished(self) -> bool:
        """Whether the folder holds an unfinished run."""
        begun = (self.path / "config.toml").is_file()
        return begun and not self.finished

    def lock(self) -> None:
        """Lock the folder against other processes until this one ends.

        Raises:
            UserError: a run in progress holds the lock.
        """
        if self._lock is not None:
            return
        try:
            self._lock = (self.path / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock = None
            raise Passing(
                f"--out {self.path} is in use by a run that still goes on: give another folder"
            ) from error
        except OSError as error:
            raise unusable(self.path, error) from error

    def cut_metrics(self, step: int, *, evaluated: bool) -> None:
        """Delete the records after a snapshot, because they will be written again.

        Args:
            step: training batches before the snapshot.
            evaluated: whether the snapshot follows the evaluation after those batches, if any.
        """
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _is_before(line, step, evaluated=evaluated)]
        write_atomically(self.metrics, "".join(f"{line}\n" for line in kept).encode())

    def begin(self, options: Mapping[str, Any], description: Description) -> None:
        """Write options and description; create and lock the folder unless it continues a run.

        Raises:
            UserError: the folder cannot be created.
        """
        if self.goes_on:
            write_atomically(self.path / "config.toml", to_toml(options).encode())
            description.write(self.path)
            return
        try:
            self._make()
            # "x": of two runs started at the same time, only one gets the folder.
            with (self.path / "config.toml").open("x", encoding="utf-8") as file:
                file.write(to_toml(options))
        except FileExistsError as error:
            raise UserError(f"--out {self.path}: another run has just taken it") from error
        except OSError as error:
            raise unusable(self.path, error) from error
        self.lock()
        description.write(self.path)

    def _make(self) -> None:
        if not self.numbered:
            self.path.mkdir(parents=True, exist_ok=True)
            return
        for path in numbered(self.numbered):  # another run may just have taken this name
            self.path = path
            try:
                self.path.mkdir(parents=True)
                return
            except FileExistsError:
                continue

    @classmethod
    def open(cls, path: str) -> RunFolder:
        """Open the folder of a run, finished or not.

        Raises:
            UserError: there is no run.
        """
        folder = cls(path)
        check_path("RUN", path, holds="config.toml")
        if not (folder.path / "config.toml").is_file():
            raise UserError(f"{path} is no run folder: give the --out folder of a training run")
        return folder

    def description(self) -> Description:
        """Read what the run was made of.

        Raises:
            UserError: the folder has no readable description.
        """
        return Description.read(self.path)

    def options(self) -> dict[str, Any]:
        """Read the run's options from ``config.toml``.

        Raises:
            UserError: the file cannot be read.
        """
        return read_toml(self.path / "config.toml")

    def summary(self) -> dict[str, Any]:
        """Read ``summary.json``.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.path / "summary.json"
        try:
            summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            _ = [summary[name] for name in ("steps", "world_size", "seconds", "samples_per_second")]
            _ = summary["stages"][0]["stage"]
            return summary
        except (OSError, ValueError, LookupError, TypeError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(f"{path} cannot be read ({reason}): train the run again") from error

    def records(self) -> list[dict[str, Any]]:
        """Read ``metrics.jsonl``, as far as it is whole; empty if there is none.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.metrics} cannot be read: {error.strerror or error}") from error
        records = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # cut off by a crash, or being written now
            if isinstance(record, dict) and {"event", "stage"} <= record.keys():
                records.append(record)
        return records

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json``."""
        write_atomically(self.path / "summary.json", (to_json(summary, indent=2) + "\n").encode())

    def write_traceback(self, rank: int, error: BaseException) -> Path:
        """Write the full traceback of an unexpected error to the run's folder."""
        path = self.path / f"error-rank-{rank}.txt"
        path.write_text("".join(traceback.format_exception(error)))
        return path


def _is_before(line: str, step: int, *, evaluated: bool) -> bool:
    """Return whether a record describes something before a snapshot."""
    try:
        record = json.loads(line)
        own, event = record["step"], record["event"]
    except (ValueError, TypeError, KeyError):
        return False  # cut off by a crash, or no record
    if not isinstance(own, int) or own != step:
        return isinstance(own, int) and own < step
    # A stage is frozen before the next batch, and begins again.
    return event not in ("begin", "freeze") and (event != "evaluate" or evaluated)


def unusable(path: Path, error: OSError) -> UserError:
    return UserError(f"--out {path} cannot be a run folder: {error.strerror or error}")


def numbered(name: str) -> Iterator[Path]:
    """Yield ``runs/NAME``, ``runs/NAME-2`` and so on."""
    for number in itertools.count(1):
        yield Path("runs") / (name if number == 1 else f"{name}-{number}")
