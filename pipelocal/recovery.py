"""Joins snapshots to stages: what is saved when a marker comes, and how a run goes on from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelocal.build import Blueprint
from pipelocal.checkpoint.description import Description
from pipelocal.checkpoint.repartition import StageState, repartitioned
from pipelocal.checkpoint.resume import (
    check_fitting,
    check_same_run,
    check_unchanged,
    differences,
    identity,
    named_snapshot,
    newest_good,
)
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.checkpoint.snapshot import Manifest, SavedFile, SnapshotFolder
from pipelocal.checkpoint.writer import SnapshotWriter
from pipelocal.config import TrainConfig
from pipelocal.control import ControlPlane
from pipelocal.errors import UserError
from pipelocal.partition import Cut, from_names, names_of
from pipelocal.pipeline.worker import Worker
from pipelocal.stage import Stage
from pipelocal.streams import tell


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins."""

    step: int = 0
    """Training batches before the snapshot to go on from; 0 to begin anew."""
    run: str = ""
    """Folder of the run that the snapshot is of."""
    cut: list[str] = field(default_factory=list)
    """Where the model was cut in that snapshot: names of the units with which stages begin."""


def find_start(
    folder: RunFolder,
    config: TrainConfig,
    blueprint: Blueprint,
    cut: list[str],
    description: Description,
) -> Start:
    """The newest good snapshot of an unfinished run, or that which ``--resume`` names.

    Rank 0 asks. Says on standard error what it found, and forgets the records that will come again.

    Args:
        folder: the run's.
        config: the options.
        blueprint: the model.
        cut: names of the units before which it will be cut.
        description: what the options stand for now.

    Raises:
        UserError: the run is another one, or still goes on; or the snapshot named cannot be used.
    """
    manifest = None
    if folder.goes_on:
        folder.lock()
        check_same_run(identity(folder.config()), config, folder.path)
        manifest = newest_good(folder.path, tell)
        folder.cut_metrics(0 if manifest is None else manifest.step)
    if manifest is not None:
        run = folder.path
        check_same_run(manifest.identity, config, run)
        check_unchanged(Description.read(run), description, config, run, tell, same_data=True)
        tell(f"going on after batch {manifest.step} of {run}")
    elif config.resume not in ("auto", "never"):
        run, manifest = named_snapshot(Path(config.resume), tell)
        check_fitting(manifest.identity, config, Path(config.resume), tell)
        same_data = (
            not {"data", "train_samples", "seed"} & differences(manifest.identity, config).keys()
        )
        check_unchanged(Description.read(run), description, config, run, tell, same_data=same_data)
        tell(f"beginning after batch {manifest.step} of {run}")
    else:
        if folder.goes_on:
            tell(f"there is no snapshot in {folder.path}: beginning anew")
        return Start()
    if manifest.cut != cut:
        _tell_new_heads(blueprint, manifest.cut, cut)
    return Start(step=manifest.step, run=str(run), cut=manifest.cut)


def _tell_new_heads(blueprint: Blueprint, old: list[str], new: list[str]) -> None:
    before, now = (_ends(blueprint, cut) for cut in (old, new))
    anew = [end for end in now if end not in before]
    gone = [end for end in before if end not in now]
    tell(
        f"another cut: every unit goes on with all that was known of it; heads that begin anew: "
        f"{_listed(anew)}; heads that have no place any more: {_listed(gone)}"
    )


def _ends(blueprint: Blueprint, names: list[str]) -> list[str]:
    units = blueprint.chain.units
    return [units[each.stop - 1].name for each in _cuts(blueprint, names)]


def _cuts(blueprint: Blueprint, names: list[str]) -> list[Cut]:
    return from_names(blueprint.chain, names, what="the snapshot's cut")


def _listed(ends: list[str]) -> str:
    return ", ".join(f"behind {end}" for end in ends) or "none"


class Snapshots:
    """What one rank does about snapshots while it trains.

    Args:
        blueprint: the cut model.
        config: the options.
        folder: the run's.
        control: tells the other ranks what was written.
        own: numbers of this rank's stages.
        cut: names of the units with which the stages after the first begin.
        writes: whether this rank writes what it has; of several replicas one does.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        config: TrainConfig,
        folder: RunFolder,
        control: ControlPlane,
        *,
        own: range,
        cut: list[str],
        writes: bool = True,
    ) -> None:
        self._blueprint = blueprint
        self._identity = json.loads(json.dumps(identity(config)))
        self._cut = cut
        self._writes = writes
        self._writer = SnapshotWriter(
            SnapshotFolder(folder.path),
            put=control.put,
            take=control.take,
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
        state["names"] = self._blueprint.parameter_names(stage)
        del state["optimizer"]  # which the training state holds
        if self._writes:
            self._writer.save(stage.steps, stage.number, state)

    def close(self) -> None:
        """Wait until all is written."""
        self._writer.close()

    def _manifest(self, step: int, files: list[SavedFile]) -> Manifest:
        return Manifest(step=step, cut=self._cut, identity=self._identity, files=tuple(files))


def load_snapshot(
    blueprint: Blueprint, worker: Worker, start: Start, *, replica: int = 0, replicas: int = 1
) -> None:
    """Bring a stage and its worker to where they were when the marker came, or its units were.

    Raises:
        UserError: a stage's file cannot be read or does not fit.
    """
    stage, folder = worker.stage, SnapshotFolder(Path(start.run))
    if start.cut == names_of(blueprint.chain, blueprint.cuts):
        state = folder.load_stage(start.step, stage.number)
        worker.load_state_dict(state["worker"], replica=replica, replicas=replicas)
    else:
        state = _from_other_cut(blueprint, stage, folder, start)
        worker.records.continue_from(start.step)
    if replicas > 1 and state["training"]["batches"]:
        raise UserError(
            f"the snapshot of batch {start.step} has gradients of {state['training']['batches']} batch(es) "
            f"that are no update yet, which replicas cannot go on with: give another one, or go on in one "
            f"process"
        )
    blueprint.load_weights(stage.number, stage.body, stage.head, state)
    blueprint.load_average(stage, state)
    steps, frozen_at = state["steps"], state["frozen_at"]
    stage.load_training_state(state["training"], steps=steps, frozen_at=frozen_at)


def _from_other_cut(
    blueprint: Blueprint, stage: Stage, folder: SnapshotFolder, start: Start
) -> dict[str, Any]:
    """A stage's state from those of other stages."""
    saved = []
    for number, cut in enumerate(_cuts(blueprint, start.cut), start=1):
        units = tuple(unit.name for unit in blueprint.chain.units[cut.start : cut.stop])
        saved.append(StageState(units=units, state=folder.load_stage(start.step, number)))
    fresh = blueprint.stage_state(stage) | {"names": blueprint.parameter_names(stage)}
    return repartitioned(saved, blueprint.unit_names(stage.number), fresh)
