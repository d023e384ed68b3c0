"""Joins snapshots to stages: what is saved when a marker comes, and how a run goes on from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pipelocal.build import Blueprint
from pipelocal.checkpoint.resume import check_same_run, identity, newest_good
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.checkpoint.snapshot import Manifest, SavedFile, SnapshotFolder
from pipelocal.checkpoint.writer import SnapshotWriter
from pipelocal.config import TrainConfig
from pipelocal.control import ControlPlane
from pipelocal.pipeline.worker import Worker
from pipelocal.stage import Stage


def first_step(folder: RunFolder, config: TrainConfig, cut: str) -> int:
    """Training batches before the newest good snapshot of an unfinished run; 0 to begin anew.

    Rank 0 asks. Says on standard error what it found, and forgets the records that will come again.

    Raises:
        UserError: the run is another one, or still goes on.
    """
    if not folder.unfinished:
        return 0
    folder.lock()
    before = identity(folder.config())
    check_same_run(before, folder.config().cut or cut, config, cut, folder.path)
    manifest = newest_good(folder.path, _tell)
    if manifest is None:
        _tell(f"there is no snapshot in {folder.path}: beginning anew")
        folder.cut_metrics(0)
        return 0
    check_same_run(manifest.identity, manifest.cut, config, cut, folder.path)
    _tell(f"going on after batch {manifest.step} of {folder.path}")
    folder.cut_metrics(manifest.step)
    return manifest.step


class Snapshots:
    """What one rank does about snapshots while it trains.

    Args:
        blueprint: the cut model.
        config: the options.
        folder: the run's.
        control: tells the other ranks what was written.
        own: numbers of this rank's stages.
        cut: as it was resolved.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        config: TrainConfig,
        folder: RunFolder,
        control: ControlPlane,
        *,
        own: range,
        cut: str,
    ) -> None:
        self._blueprint = blueprint
        self._identity = json.loads(json.dumps(identity(config)))
        self._cut = cut
        self._writer = SnapshotWriter(
            SnapshotFolder(folder.path),
            put=control.put,
            wait_for=control.wait_for,
            check=control.check,
            own=own,
            complete=self._manifest if control.world.rank == 0 else None,
            stages=blueprint.stages,
            keep=config.keep_snapshots,
        )

    def save(self, stage: Stage, worker: dict[str, Any]) -> None:
        """See :data:`~pipelocal.pipeline.worker.Save`."""
        state = self._blueprint.stage_state(stage)
        state |= {"training": stage.training_state(), "worker": worker}
        del state["optimizer"]  # which the training state holds
        self._writer.save(stage.steps, stage.number, state)

    def close(self) -> None:
        """Wait until all is written."""
        self._writer.close()

    def _manifest(self, step: int, files: list[SavedFile]) -> Manifest:
        return Manifest(step=step, cut=self._cut, identity=self._identity, files=tuple(files))


def load_snapshot(blueprint: Blueprint, worker: Worker, run: Path, step: int) -> None:
    """Bring a stage and its worker to where they were when the marker came.

    Raises:
        UserError: the stage's file cannot be read or does not fit.
    """
    stage = worker.stage
    state = SnapshotFolder(run).load_stage(step, stage.number)
    blueprint.load_weights(stage, state)
    stage.load_training_state(state["training"], steps=state["steps"], frozen_at=state["frozen_at"])
    worker.load_state_dict(state["worker"])


def _tell(line: str) -> None:
    sys.stderr.write(f"pipelocal: {line}\n")
