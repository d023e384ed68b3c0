"""The run folder: options, metrics, summary and the stages' weights.

::

    runs/first/
      config.toml        the resolved options
      run.json           what they stood for: model, data, versions
      metrics.jsonl      a line per stage and interval, and per stage and evaluation
      summary.json       written last: a folder without it holds an unfinished run
      snapshots/         what it takes to go on after some batches
      stages/stage-1.pt  body, head and optimizer of a stage at the end; loads with weights_only=True
"""

from __future__ import annotations

import fcntl
import itertools
import json
import re
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from pipelocal.checkpoint.description import (
    Description,
    ModelDescription,
    changed_code,
    own_code,
)
from pipelocal.checkpoint.pick_snapshot import run_of
from pipelocal.checkpoint.resume import differences, identity
from pipelocal.config import TrainConfig, load_toml, to_toml
from pipelocal.errors import Passing, UserError
from pipelocal.references import is_reference
from pipelocal.system.files import write_atomically
from pipelocal.system.paths import check_path
from pipelocal.system.strict_json import to_json


class RunFolder:
    """Paths and file formats of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.goes_on = False
        """Whether the run that was chosen began here before."""
        self._lock: TextIO | None = None
        self._name = ""
        """Of which the folder takes the next free number, if it need not be this one."""

    @classmethod
    def choose(
        cls, config: TrainConfig, model: ModelDescription, *, earlier: str | None = None
    ) -> RunFolder:
        """The folder of a new run, which is not made yet, or that of the run to go on with.

        Args:
            config: the options.
            model: what they name now.
            earlier: folder of an attempt of this very run that failed; None on the first attempt.

        Raises:
            UserError: there is something already.
        """
        if config.out is None and earlier is None:
            return cls._default(config, model)
        folder = cls(config.out or earlier or "")
        check_path("--out", folder.path, holds="config.toml")
        if config.resume != "never" and folder.unfinished:
            folder.goes_on = True
            return folder
        try:
            if folder.path.exists() and any(folder.path.iterdir()):
                if folder.finished:
                    raise UserError(folder._how_to_train_more(config))
                what = "another run" if (folder.path / "config.toml").exists() else "other files"
                raise UserError(
                    f"--out {folder.path} already holds {what}: give a folder that is new or empty"
                )
        except OSError as error:
            raise _unusable(folder.path, error) from error
        return folder

    @classmethod
    def _default(cls, config: TrainConfig, model: ModelDescription) -> RunFolder:
        """Without ``--out``: this very run, if it began and did not end, or the next free number."""
        name = "-".join(_short(each) for each in (config.model, config.data, config.objective))
        taken = [path for path in Path("runs").glob(f"{name}*") if _number_of(path, name)]
        if config.resume != "never":
            for path in sorted(taken, key=lambda path: _number_of(path, name), reverse=True):
                folder = cls(path)
                if folder._is_of(config, model) and folder._try_lock():
                    folder.goes_on = True
                    return folder
        folder = cls(next(path for path in _numbered(name) if not path.exists()))
        folder._name = name
        return folder

    def _is_of(self, config: TrainConfig, model: ModelDescription) -> bool:
        """Whether this is an unfinished run with these options, whose code has not changed."""
        if not self.unfinished:
            return False
        try:
            own, then = self.config(), self.description()
        except UserError:
            return False
        changed = changed_code(then.references, own_code(config)) or then.model.differences(model)
        if changed and not config.accept_changes:
            return False
        return own.resume == config.resume and not differences(identity(own), config)

    def _how_to_train_more(self, config: TrainConfig) -> str:
        own = self.config()
        if own.max_steps is not None:
            more = f"--max-steps {2 * own.max_steps}"
        else:
            more = f"--epochs {config.epochs if config.epochs > own.epochs else 2 * own.epochs}"
        return (
            f"--out {self.path} holds a run that came to its end: --resume {self.path} {more} with a new "
            f"--out trains it further; another run wants a folder that is new or empty"
        )

    @property
    def metrics(self) -> Path:
        """The file of the records."""
        return self.path / "metrics.jsonl"

    @property
    def finished(self) -> bool:
        """Whether a run came to its end here."""
        return (self.path / "summary.json").exists()

    @property
    def unfinished(self) -> bool:
        """Whether a run began here and did not come to its end."""
        begun = (self.path / "config.toml").is_file()
        return begun and not self.finished

    def lock(self) -> None:
        """Keep other processes from the folder until this one ends.

        Raises:
            UserError: a run that still goes on has it.
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
            raise _unusable(self.path, error) from error

    def _try_lock(self) -> bool:
        try:
            self.lock()
        except UserError:
            return False
        return True

    def cut_metrics(self, step: int, *, evaluated: bool) -> None:
        """Forget the records behind a snapshot: they will come again.

        Args:
            step: training batches before it.
            evaluated: whether it was taken behind the evaluation that follows them, if one does.
        """
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _is_before(line, step, evaluated=evaluated)]
        write_atomically(self.metrics, "".join(f"{line}\n" for line in kept).encode())

    def begin(self, config: TrainConfig, description: Description) -> None:
        """Write options and description; makes the folder and takes its lock unless a run goes on in it.

        Raises:
            UserError: it cannot be made.
        """
        if self.goes_on:
            write_atomically(self.path / "config.toml", to_toml(config).encode())
            description.write(self.path)
            return
        try:
            self._make()
            # "x": of two runs that are started at once, only one gets the folder.
            with (self.path / "config.toml").open("x", encoding="utf-8") as file:
                file.write(to_toml(config))
        except FileExistsError as error:
            raise UserError(f"--out {self.path}: another run has just taken it") from error
        except OSError as error:
            raise _unusable(self.path, error) from error
        self.lock()
        description.write(self.path)

    def _make(self) -> None:
        if not self._name:
            self.path.mkdir(parents=True, exist_ok=True)
            return
        for path in _numbered(self._name):  # another run may have taken what was free a moment ago
            self.path = path
            try:
                self.path.mkdir(parents=True)
                return
            except FileExistsError:
                continue

    @classmethod
    def open(cls, path: str) -> RunFolder:
        """The folder of a run, finished or not.

        Raises:
            UserError: there is none.
        """
        folder = cls(path)
        check_path("RUN", path, holds="config.toml")
        if not (folder.path / "config.toml").is_file():
            raise UserError(f"{path} is no run folder: give the --out folder of a training run")
        return folder

    def description(self) -> Description:
        """What the run was made of.

        Raises:
            UserError: the folder does not say it.
        """
        return Description.read(self.path)

    def config(self) -> TrainConfig:
        """The run's options."""
        return load_toml(str(self.path / "config.toml"), what="")

    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` says."""
        summary: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        return summary

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json``."""
        write_atomically(self.path / "summary.json", (to_json(summary, indent=2) + "\n").encode())

    def write_traceback(self, rank: int, error: BaseException) -> Path:
        """Keep the whole traceback of an unforeseen error beside the run."""
        path = self.path / f"error-rank-{rank}.txt"
        path.write_text("".join(traceback.format_exception(error)))
        return path


def options_to_go_on_with(resume: str) -> TrainConfig:
    """The options of the run that ``--resume`` names, as a new run takes them over.

    Raises:
        UserError: it names none.
    """
    check_path("--resume", resume)
    run = run_of(Path(resume))
    if not (run / "config.toml").is_file():
        raise UserError(
            f"--resume {resume}: there is no run in {run}: give auto, never, the folder of a run, or that "
            f"of one of its snapshots"
        )
    folder = RunFolder(run)
    config = folder.description().located(folder.config(), run)
    return replace(config, out=None, resume="auto", config=None)


def _is_before(line: str, step: int, *, evaluated: bool) -> bool:
    """Whether a record is of what was before a snapshot."""
    try:
        record = json.loads(line)
        own = record.get("step")
    except (ValueError, AttributeError):
        return False  # cut off by a crash
    if own is None or own != step:
        return own is not None and own < step
    # A stage is frozen before the next batch.
    return record["event"] != "freeze" and (record["event"] != "evaluate" or evaluated)


def _short(name: str) -> str:
    """A name as a part of a folder's: of a reference, the file's or the package's."""
    return Path(name.partition(":")[0]).stem if is_reference(name) else name


def _unusable(path: Path, error: OSError) -> UserError:
    return UserError(f"--out {path} cannot be a run folder: {error.strerror or error}")


def _numbered(name: str) -> Iterator[Path]:
    """``runs/NAME``, ``runs/NAME-2`` and so on."""
    for number in itertools.count(1):
        yield Path("runs") / (name if number == 1 else f"{name}-{number}")


def _number_of(path: Path, name: str) -> int:
    """Of a path that :func:`_numbered` gives; 0 of another one."""
    if path.name == name:
        return 1
    match = re.fullmatch(re.escape(name) + r"-(\d+)", path.name)
    return 0 if match is None else int(match[1])
