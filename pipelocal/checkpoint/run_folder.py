"""The run folder: options, metrics, summary and the stages' weights.

::

    runs/first/
      config.toml        the resolved options
      run.json           what they stood for: model, data, versions
      metrics.jsonl      a line per stage and interval, and per stage and evaluation
      summary.json       written last: a folder without it holds an unfinished run
      stages/stage-1.pt  body, head and optimizer of a stage; loads with weights_only=True
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import traceback
from pathlib import Path
from typing import Any, TextIO

import torch

from pipelocal.checkpoint.atomic import write_atomically
from pipelocal.checkpoint.description import Description
from pipelocal.config import TrainConfig, load_toml, to_toml
from pipelocal.errors import UserError
from pipelocal.paths import check_path
from pipelocal.strict_json import to_json


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
        self.metrics = self.path / "metrics.jsonl"

    @classmethod
    def choose(cls, config: TrainConfig, *, earlier: str | None = None) -> RunFolder:
        """The folder of a new run, which is not made yet, or that of the run to go on with.

        Args:
            config: the options.
            earlier: folder of an attempt of this very run that failed; None on the first attempt.

        Raises:
            UserError: there is something already.
        """
        folder = cls(config.out or earlier or _free_default(config))
        check_path("--out", folder.path, holds="config.toml")
        if config.resume != "never" and folder.unfinished:
            folder.goes_on = True
            return folder
        try:
            if folder.path.exists() and any(folder.path.iterdir()):
                what = "another run" if (folder.path / "config.toml").exists() else "other files"
                raise UserError(
                    f"--out {folder.path} already holds {what}: give a folder that is new or empty"
                )
        except OSError as error:
            raise _unusable(folder.path, error) from error
        return folder

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
        try:
            self._lock = (self.path / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--out {self.path} is in use by a run that still goes on: give another folder"
            ) from error
        except OSError as error:
            raise _unusable(self.path, error) from error

    def cut_metrics(self, step: int) -> None:
        """Forget the records after a batch: they will come again."""
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
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
            self.path.mkdir(parents=True, exist_ok=True)
            # "x": of two runs that are started at once, only one gets the folder.
            with (self.path / "config.toml").open("x", encoding="utf-8") as file:
                file.write(to_toml(config))
        except FileExistsError as error:
            raise UserError(f"--out {self.path}: another run has just taken it") from error
        except OSError as error:
            raise _unusable(self.path, error) from error
        self.lock()
        description.write(self.path)

    @classmethod
    def open(cls, path: str) -> RunFolder:
        """The folder of a finished run.

        Raises:
            UserError: there is no finished run.
        """
        folder = cls(path)
        check_path("RUN", path, holds="config.toml")
        if not (folder.path / "config.toml").is_file():
            raise UserError(f"{path} is no run folder: give the --out folder of a training run")
        if not (folder.path / "summary.json").is_file():
            raise UserError(f"the run in {path} did not finish: it has no summary.json")
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

    def save_stage(self, stage: int, state: dict[str, Any]) -> None:
        """Write a stage's state; the file is whole or not there."""
        path = self._stage_path(stage)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(path, buffer.getbuffer())

    def load_stage(self, stage: int) -> dict[str, Any]:
        """A stage's state, on the CPU.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = self._stage_path(stage)
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:  # which training again would not mend
            reason = error.strerror or str(error)
            raise UserError(
                f"{path} cannot be read ({reason}): take the run folder with all its files"
            ) from error
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} is damaged ({reason}): train the run again") from error
        return state

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

    def _stage_path(self, stage: int) -> Path:
        return self.path / "stages" / f"stage-{stage}.pt"


def _step_of(line: str) -> float:
    """The batch of a record; after all others if the line is none, as one cut off by a crash."""
    try:
        return float(json.loads(line).get("step", math.inf))
    except ValueError:
        return math.inf


def _unusable(path: Path, error: OSError) -> UserError:
    return UserError(f"--out {path} cannot be a run folder: {error.strerror or error}")


def _free_default(config: TrainConfig) -> Path:
    name = f"{Path(config.model.partition(':')[0]).stem}-{config.data}-{config.objective}"
    number = 1
    while (path := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path
