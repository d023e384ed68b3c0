"""A run of Weights & Biases."""

from __future__ import annotations

import json
import os
import secrets
from inspect import signature
from pathlib import Path
from typing import Any

from pipelocal.errors import UserError
from pipelocal.loggers.logger import LoggedRun, Record, numbers, step_of
from pipelocal.loggers.packages import load
from pipelocal.system.files import write_atomically


class WeightsAndBiases:
    """Logs numbers such as ``loss/stage-1`` over ``batch``, which counts training batches.

    The service forgets nothing, so a run that goes on must not log a record again. What was logged last of
    each stage is kept in the run's folder, with the id of the service's run.

    Raises:
        UserError: the package is missing, or nobody is logged in.
    """

    def __init__(self) -> None:
        self._wandb = load("wandb", "wandb")
        if not _logged_in(self._wandb):
            raise UserError(
                "--log wandb: nobody is logged in: run wandb login, set WANDB_API_KEY, or set "
                "WANDB_MODE=offline"
            )
        self._run: Any = None

    def start(self, run: LoggedRun) -> None:
        """Begin a run of the service, or go on with that of the same folder."""
        folder = run.folder
        self._file = None if folder is None else folder / "wandb" / "pipelocal.json"
        self._id, self._logged = _kept(self._file)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "pipelocal"),
            name=os.environ.get("WANDB_NAME", None if folder is None else folder.name),
            id=self._id,
            dir=None if folder is None else str(folder),
            config={"title": run.title, **run.options},
            resume="allow",
            reinit="create_new",  # a run of the user's own stays what it is
            settings=self._wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("batch")
        self._run.define_metric("*", step_metric="batch")

    def record(self, record: Record) -> None:
        """Log every number of a record, unless it was logged before."""
        curve = f"{record['event']} {record['stage']} {record.get('replica', 0)}"
        step = step_of(record)
        found = numbers(record)
        if not found or step <= self._logged.get(curve, -1):
            return
        self._run.log({"batch": step, **found})
        self._logged[curve] = step
        if self._file is not None:
            write_atomically(
                self._file, json.dumps({"id": self._id, "logged": self._logged}).encode()
            )

    def close(self) -> None:
        """End the service's run, when all is sent."""
        if self._run is not None:
            self._run.finish()


def _kept(file: Path | None) -> tuple[str, dict[str, int]]:
    if file is None or not file.exists():
        return secrets.token_hex(4), {}
    kept = json.loads(file.read_text())
    return kept["id"], kept["logged"]


def _logged_in(wandb: Any) -> bool:
    """Return whether a run can begin without a question in the middle of the training."""
    if wandb.setup().settings.mode != "online" or "prompt" not in signature(wandb.login).parameters:
        return True
    return bool(wandb.login(prompt=False))
