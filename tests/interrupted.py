"""Runs that end for no reason, and what those of the tests of snapshots have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelocal import cli
from pipelocal.checkpoint.writer import SnapshotWriter
from pipelocal.stage.stage import Stage
from tests.launching import until

BASE = ["--model", "mlp", "--stages", "3", "--epochs", "3", "--log-every", "8"]
BASE += ["--objective", "sgr"]
"""69 batches, some of which bring a delta along."""
EVERY = ["--snapshot-every", "10", "--keep-snapshots", "3"]


class Killed(BaseException):
    """In place of SIGKILL, for runs in this process."""


def train_until(
    step: int, arguments: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run in this process that ends for no reason before the update after ``step`` of them.

    Its snapshots are complete by then: a thread writes them, which a test cannot wait for otherwise.
    """
    update = Stage.update
    start_writer = SnapshotWriter.__init__
    writers: list[SnapshotWriter] = []

    def starting(writer: SnapshotWriter, *args: Any, **kwargs: Any) -> None:
        start_writer(writer, *args, **kwargs)
        writers.append(writer)

    def ending(stage: Stage, due: int | None = None) -> None:
        if stage.steps == step:
            raise Killed
        update(stage, due)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "update", ending)
        patch.setattr(SnapshotWriter, "__init__", starting)
        with pytest.raises(Killed):
            cli.run(["train", *arguments, "--out", str(out), "--plain"])
    until(lambda: all(writer.idle for writer in writers))
