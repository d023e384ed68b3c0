"""Saves stages in snapshots, when a marker comes and at the end of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.checkpoint.snapshot import Epochs, Evaluated, Manifest, SnapshotFolder, save_stage
from pipelocal.checkpoint.writer import Part, SnapshotWriter
from pipelocal.pipeline.source import Source
from pipelocal.pipeline.timetable import Timetable
from pipelocal.pipeline.worker import Worker
from pipelocal.ranks.control import ControlPlane
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.identity import identity
from pipelocal.run.spec import Spec
from pipelocal.stage.state import parameter_names, stage_state


class Snapshots:
    """Writes one rank's part of the snapshots, during the run and at its end.

    Args:
        blueprint: the cut model.
        spec: the run.
        folder: the run's folder.
        control: tells the other ranks what was written.
        own: numbers of this rank's stages.
        plan: how long the run trains.
        writes: whether this rank writes its stages; only one of several replicas does.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        spec: Spec,
        folder: RunFolder,
        control: ControlPlane,
        *,
        own: range,
        plan: Timetable,
        writes: bool = True,
    ) -> None:
        self._blueprint = blueprint
        self._identity = json.loads(json.dumps(identity(spec)))
        self._control = control
        self._cut = blueprint.cut_names
        self._epochs = Epochs(
            steps_per_epoch=plan.steps_per_epoch,
            epochs_before=plan.epochs_before,
            steps_before=plan.steps_before,
        )
        self._keep = spec.options.keep_snapshots
        self._writes = writes
        self._folder = SnapshotFolder(folder.path)
        self._writer = SnapshotWriter(
            self._folder.at,
            put=control.put,
            take=control.take,
            check=control.check,
            own=own,
            complete=self._complete if control.world.rank == 0 else None,
            stages=blueprint.stages,
        )

    @property
    def price(self) -> float:
        """Seconds that the last snapshot took; infinite while one is being written, and off rank 0."""
        known = self._control.world.rank == 0 and self._writer.idle
        return self._writer.seconds if known else math.inf

    def save(self, worker: Worker) -> None:
        """See :data:`~pipelocal.pipeline.worker.Save`."""
        state = self._state(worker)
        if self._writes:
            stage = worker.stage
            self._writer.save(stage.steps, stage.number, state, _evaluated(worker))

    def close(self) -> None:
        """Wait until everything is written."""
        self._writer.close()

    def leave(self) -> None:
        """Wait until nothing is written any more, after a failure."""
        self._writer.leave()

    def save_end(self, worker: Worker) -> None:
        """Write the final state of a stage."""
        state = self._state(worker)
        if self._writes:
            number = worker.stage.number
            file = save_stage(self._folder.end, number, state)
            part = Part(file=file, evaluated=_evaluated(worker))
            self._control.put(f"snapshot/end/{number}", asdict(part))

    def complete_end(self, step: int) -> None:
        """On rank 0, mark the final snapshot as complete and delete what is no longer needed."""
        numbers = range(1, self._blueprint.stages + 1)
        parts = [Part.of_json(self._control.take(f"snapshot/end/{number}")) for number in numbers]
        self._folder.complete_end(self._manifest(step, parts), keep=self._keep)

    def _complete(self, step: int, parts: Sequence[Part]) -> None:
        self._folder.complete(self._manifest(step, parts), keep=self._keep)

    def _manifest(self, step: int, parts: Sequence[Part]) -> Manifest:
        return Manifest(
            step=step,
            cut=self._cut,
            identity=self._identity,
            epochs=self._epochs,
            evaluated=parts[-1].evaluated,
            files=tuple(part.file for part in parts),
        )

    def _state(self, worker: Worker) -> dict[str, Any]:
        """Return everything needed to resume; all replicas call it together."""
        stage = worker.stage
        training = stage.training_state()
        chain, cut = self._blueprint.network, self._blueprint.cuts[stage.number - 1]
        state = stage_state(chain, cut, stage)
        state["optimizer"] = training.pop("optimizer")
        state |= {"training": training, "worker": worker.state_dict()}
        if isinstance(worker.incoming, Source):
            state["data"] = worker.incoming.state_dict()
        # A frozen stage has no optimizer state to look up by name.
        state["names"] = [] if stage.frozen else parameter_names(chain, cut, stage)
        return state


def _evaluated(worker: Worker) -> Evaluated | None:
    step, reading = worker.evaluation.step, worker.evaluation.reading
    if step is None or reading is None or reading.rows == 0:
        return None
    task = worker.stage.task
    first = task.metrics[0]
    return Evaluated(
        step=step,
        loss=reading.loss,
        metric=first,
        value=reading.metrics.get(first),
        higher_is_better=task.higher_is_better,
    )
