"""One rank's part of a run: brings together stages, transport and schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch

from pipelocal.checkpoint.description import ModelDescription, own_code
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.checkpoint.snapshot import load_stage
from pipelocal.data.batches import Batches
from pipelocal.data.dataset import DataInfo
from pipelocal.errors import StageError, UserError
from pipelocal.loggers.feed import Feeds
from pipelocal.loggers.registry import opened
from pipelocal.partition import other_reading
from pipelocal.partition.replicas import replicas_text
from pipelocal.pipeline.markers import Markers
from pipelocal.pipeline.placement import Seat, place
from pipelocal.pipeline.source import Source
from pipelocal.pipeline.timetable import Timetable
from pipelocal.pipeline.worker import Worker, run_stream
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.host import set_up_host, use_interface
from pipelocal.ranks.world import World
from pipelocal.replicas.join import join_replicas
from pipelocal.run.agreement import (
    check_same_code,
    check_same_data,
    check_same_initial,
    check_same_model,
)
from pipelocal.run.assembly import Assembly
from pipelocal.run.connection import connected, disconnect
from pipelocal.run.edges import Edges
from pipelocal.run.fitness import check_losses, check_stage_fits
from pipelocal.run.initial import Initial, find_initial, require_initial
from pipelocal.run.prepare import Findings, begin, prepare
from pipelocal.run.recovery import Start, load_snapshot
from pipelocal.run.reporting import all_finals, make_reporter
from pipelocal.run.snapshots import Snapshots
from pipelocal.run.spec import Spec
from pipelocal.run.summary import begin_record, describe, final_record, summarise
from pipelocal.stage.stage import Stage
from pipelocal.stage.state import load_stage_weights, stage_state
from pipelocal.system.signals import Wishes
from pipelocal.system.streams import for_progress, tell
from pipelocal.telemetry.actions import Recorder
from pipelocal.telemetry.reporter import Reporter
from pipelocal.telemetry.setting_up import SettingUp
from pipelocal.telemetry.trace import merge_parts, write_part

BeginWith = Callable[[Stage], None]
"""Gives a newly built stage its initial weights."""


class Run:
    """One rank's part of a run.

    Args:
        spec: what is trained, and how; every option is valid by itself.
        world: the ranks.
        control: the control plane.
        begin_with: gives new stages other weights; None to keep their random ones.
    """

    def __init__(
        self,
        spec: Spec,
        world: World,
        control: ControlPlane,
        *,
        begin_with: BeginWith | None = None,
    ) -> None:
        self.spec = spec
        self.world = world
        self.control = control
        self.folder: RunFolder | None = None
        self.wishes = Wishes()
        self.stopped_at: int | None = None
        """Training batches after which a signal ended the stream; None if it ran to its end."""
        self.stages: list[Stage] = []
        """This rank's stages, once they are built."""
        self.workers: list[Worker] = []
        options = spec.options
        self.recorder = Recorder(trace=options.trace, print_transfers=options.debug_transfers)
        self.loggers = Feeds()
        """Those of the run, on rank 0."""
        self._begin_with = begin_with
        self._clock_offset_s = 0.0
        self._initial: Initial | None = None

    def execute(self, stream: TextIO) -> dict[str, Any] | None:
        """Set up, train and save, in step with the other ranks.

        Returns:
            The summary, on every rank; None if a signal ended the run before its end.
        """
        if self.world.rank == 0:
            self.loggers = Feeds(opened(self.spec.log, keeps=self.spec.keeps))
        setting_up = SettingUp(stream if self.world.rank == 0 else for_progress(None))
        setting_up.now(f"setting up {self.spec.title}")
        model = self._draw()
        setting_up.now("opening the data and choosing the cut")
        prepared = prepare(self.spec, self.blueprint, model, self.device, self.world, self.control)
        found = prepared.findings
        if found.finished:
            return self._leave_finished(prepared.folder, stream)
        self._settle(found)
        batches = self._data_of_this_rank(prepared.batches)
        start, plan = self._timetable(found)
        setting_up.now("building the stages")
        self._build_stages(plan, found, start)
        self._batch_size = found.batch_size
        assembly = self._assembly()
        if self.world.rank == 0 and assembly.contracts.way_back is not None:
            tell(assembly.contracts.describe_back())
        setting_up.now("connecting the ranks")
        edges = self._connect(assembly)
        if self.spec.keeps:
            # Only now: all ranks have built their stages, so a start that fails leaves no folder behind.
            self.folder = begin(prepared, self.spec, start, self.control)
        snapshots = self._snapshots(plan)
        source = self._source(batches, plan, start, edges, snapshots)
        self._hire(assembly, source, edges, snapshots)
        self._go_on_from(start, plan, edges)
        for stage in self.stages:
            self.control.post(begin_record(stage, self.world.rank, self.blueprint, plan))
        reporter = None
        if self.world.rank == 0:
            reporter = make_reporter(
                self.spec,
                self.blueprint,
                self.placement,
                plan,
                self.folder,
                self.control,
                stream,
                self.loggers,
            )
        try:
            if reporter:
                reporter.start()
            self._train(snapshots)
            if self.workers[0].evaluation.step != plan.total_steps:
                self.stopped_at = self.workers[0].stage.steps
                self.control.leave()
                return None
            summary = self._finish(plan, reporter, snapshots, assembly.contracts.votes.why_not)
            if self.spec.options.replicate == "fsdp":
                self.stages = [self._made_whole(stage) for stage in self.stages]
            self.control.leave()
        finally:
            if reporter:
                reporter.stop()
                reporter.view.close()
            for worker in self.workers:
                worker.close()
        disconnect(self.world)
        return summary

    def trouble(self) -> StageError | None:
        """Return the known failure of a neighbouring rank, if any."""
        edges = (worker.trouble() for worker in self.workers)
        return next(filter(None, (self.control.lost, *edges)), None)

    # Setup.

    def _draw(self) -> ModelDescription:
        """Build the blueprint, check that all ranks have the same model, and choose this rank's device.

        Raises:
            UserError: the model cannot be built, or not be trained by this many ranks.
        """
        spec, world, options = self.spec, self.world, self.spec.options
        use_interface(options.interface)
        self.blueprint = spec.draw(self._info())
        model = spec.describe_model(self.blueprint.chain)
        check_same_model(model, self.control)
        self._initial = find_initial(spec.init, self.blueprint.chain, world)
        if self._initial is not None:
            model = replace(model, init=self._initial.weights.fingerprint)
        if spec.init is not None:
            check_same_initial(model.init, self.control)
        check_same_code(own_code(spec.references), self.control)
        if isinstance(spec.cut.cut, str) and world.rank == 0:
            other = other_reading(self.blueprint.chain, spec.cut.cut)
            if other is not None:
                tell(other)
        _check_alone(spec, world)
        counts = options.replica_counts(self.blueprint.stages)
        if counts is not None:  # otherwise rank 0 will choose them
            place(self.blueprint.stages, world.size, counts)
        set_up_host(options.threads)
        self.device = world.device(options.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        return model

    def _info(self) -> DataInfo:
        """Return the description of the data; rank 0 finds it if it is not known beforehand."""
        info = self.spec.info
        if isinstance(info, DataInfo):
            return info
        if self.world.rank == 0:
            found = info()
            self.control.put("info", found.to_json())
            return found
        told = self.control.wait_for("info", timeout_s=self.spec.options.start_timeout)
        return DataInfo.from_json(told)

    def _settle(self, found: Findings) -> None:
        """Adopt what rank 0 chose; the resolved options record what was measured."""
        if self.spec.options.replicas == "auto":
            self.spec = self.spec.resolved(replicas=replicas_text(found.replicas))
        self.blueprint = self.blueprint.cut_at(found.cut)
        if self.spec.cut.measured:
            self.spec = self.spec.resolved(cut=self.blueprint.cut_text)
        self.placement = place(self.blueprint.stages, self.world.size, found.replicas)

    @property
    def seat(self) -> Seat:
        """This rank's place among stages and replicas."""
        return self.placement.seat(self.world.rank)

    def _data_of_this_rank(self, opened: Batches | None) -> Batches | None:
        """Open the data on replicas of the first stage; each reads its own batches."""
        if self.seat.index > 0:
            return None
        batches = opened or self.spec.batches()
        check_same_data(batches, self.control)
        return batches

    def _timetable(self, found: Findings) -> tuple[Start, Timetable]:
        start = Start(**found.start)
        plan = self.spec.timetable(
            found.steps_per_epoch,
            epochs_before=start.epochs_before,
            steps_before=start.steps_before,
        )
        _check_start(start, plan, alone=self.world.size == 1)
        return start, plan

    def _build_stages(self, plan: Timetable, found: Findings, start: Start) -> None:
        blueprint, initial = self.blueprint, self._initial
        if not start.step:  # otherwise the weights are the snapshot's
            require_initial(self.spec.init, initial)
            if initial is not None:
                blueprint = replace(blueprint, chain=initial.begun(blueprint.chain))
                if self.world.rank == 0:
                    tell(initial.describe())
        if self.world.rank == 0:
            for line in blueprint.describe_crossing():
                tell(line)
            options = self.spec.options
            if options.compress is not None and options.replicas == "1":
                tell(
                    f"--compress {options.compress}: there are no replicas whose gradients to compress"
                )
        check_losses(blueprint)
        for number in self.seat.block.stages:
            stage = blueprint.build_stage(
                number,
                device=self.device,
                total_steps=plan.total_steps,
                total_updates=plan.total_updates,
                accumulate=self.spec.options.batches_an_update,
            )
            if self._begin_with is not None:
                self._begin_with(stage)
            check_stage_fits(
                stage,
                self.blueprint,
                self.spec,
                replicas=found.replicas[number - 1],
                smallest_batch=found.smallest_batch,
            )
            self.stages.append(stage)
        self._initial = None  # which lets the file go

    def _assembly(self) -> Assembly:
        return Assembly(
            self.spec.options,
            self.blueprint,
            self.device,
            batch_size=self._batch_size,
            callbacks=self.spec.callbacks,
            report=self.control.post,
            recorder=self.recorder,
        )

    def _connect(self, assembly: Assembly) -> Edges:
        edges, self._clock_offset_s = connected(
            self.spec.options,
            assembly.contracts,
            self.placement,
            world=self.world,
            control=self.control,
            device=self.device,
            recorder=self.recorder,
        )
        return edges

    def _snapshots(self, plan: Timetable) -> Snapshots | None:
        if self.folder is None:
            return None
        return Snapshots(
            self.blueprint,
            self.spec,
            self.folder,
            self.control,
            own=self.seat.block.stages,
            plan=plan,
            writes=self.seat.replica == 0,
        )

    def _source(
        self,
        batches: Batches | None,
        plan: Timetable,
        start: Start,
        edges: Edges,
        snapshots: Snapshots | None,
    ) -> Source | None:
        """Return the start of the stream, on replicas of the first stage."""
        if batches is None:
            return None
        if start.step:
            batches.go_on(start.step, load_stage(Path(start.snapshot), 1).get("data"))
        options, markers = self.spec.options, None
        if snapshots is not None and options.takes_snapshots:
            markers = Markers(
                every=options.snapshot_every,
                seconds=60 * options.snapshot_minutes,
                wishes=self.wishes,
                done=start.step,
                price=lambda: snapshots.price,
                agree=None if edges.group is None else edges.group.greatest,
            )
        return Source(
            batches,
            plan,
            self.device,
            start=start.step,
            evaluated=start.evaluated,
            markers=markers,
            deal=self.seat.deal,
            check_target=self.blueprint.check_target,
        )

    def _hire(
        self,
        assembly: Assembly,
        source: Source | None,
        edges: Edges,
        snapshots: Snapshots | None,
    ) -> None:
        incoming = source or edges.before
        assert incoming is not None
        self.workers = assembly.workers(
            self.stages,
            incoming,
            edges,
            save=None if snapshots is None else snapshots.save,
            reports=self.seat.replica == 0,
        )

    def _go_on_from(self, start: Start, plan: Timetable, edges: Edges) -> None:
        """Restore the stages from a snapshot and join them with their replicas."""
        for worker in self.workers:
            if start.step:
                replica, replicas = self.seat.replica, self.seat.block.replicas
                load_snapshot(
                    self.blueprint, worker, start, plan, replica=replica, replicas=replicas
                )
            if edges.group is not None:
                seed = self.spec.recipe.seed
                join_replicas(worker.stage, edges.group, self.spec.options, seed=seed)

    # The stream, and what follows it.

    def _train(self, snapshots: Snapshots | None) -> None:
        heard = self.wishes.heard() if self.spec.takes_snapshots else nullcontext()
        with self._traced(), heard:
            try:
                run_stream(self.workers, self.control.check)
            except BaseException:
                # This process may go on from the snapshots at once; of several ranks, each one ends.
                if snapshots is not None and self.world.size == 1:
                    snapshots.leave()
                raise
            finally:
                for worker in self.workers:
                    worker.stage.forget_graphs()
            if snapshots is not None:
                snapshots.close()

    @contextmanager
    def _traced(self) -> Iterator[None]:
        """Write this rank's part of a trace, if requested, even after a failure."""
        try:
            yield
        finally:
            if self.spec.options.trace and self.folder is not None:
                rank = self.world.rank
                write_part(self.folder.path, rank, self.recorder, self._clock_offset_s)

    def _finish(
        self,
        plan: Timetable,
        reporter: Reporter | None,
        snapshots: Snapshots | None,
        no_ensemble: str | None,
    ) -> dict[str, Any]:
        """Save and report the final state; return the summary."""
        for worker in self.workers:
            if snapshots is not None:
                snapshots.save_end(worker)
            head = self.blueprint.head_name(worker.stage.number)
            self.control.post(final_record(worker, self.world.rank, self.device, head=head))
        if reporter is None:
            return dict(self.control.wait_for("summary"))
        finals, folder = all_finals(reporter, self.placement, self.control), self.folder
        summary = summarise(
            self.spec.text,
            self.world.size,
            finals,
            no_ensemble=no_ensemble,
            higher_is_better=self.spec.recipe.task.higher_is_better,
        )
        if folder is not None and snapshots is not None:
            if self.spec.options.trace:  # by now every rank has written its part
                merge_parts(folder.path, self.world.size)
            snapshots.complete_end(plan.total_steps)
            folder.write_summary(summary)
        reporter.stop()
        reporter.view.close()
        python = bool(self.spec.text.get("python"))
        reporter.view.message(
            describe(summary, None if folder is None else folder.path, python=python)
        )
        if self.world.size > 1:
            self.control.put("summary", summary)
        return summary

    def _made_whole(self, stage: Stage) -> Stage:
        """Return a stage with the weights of one whose replicas had shares of them until now."""
        chain, cut = self.blueprint.network, self.blueprint.cuts[stage.number - 1]
        state = stage_state(chain, cut, stage)
        whole = self.blueprint.build_stage(stage.number, device=self.device, total_steps=1)
        load_stage_weights(chain, cut, whole, state)
        return whole

    def _leave_finished(self, folder: RunFolder, stream: TextIO) -> dict[str, Any]:
        """Leave a run that was already finished; return its summary."""
        summary = folder.summary()
        if self.world.rank == 0:
            python = bool(self.spec.text.get("python"))
            said = describe(summary, folder.path, python=python)
            stream.write(f"it was finished before: {said}\n")
        self.control.leave()
        return summary


def _check_alone(spec: Spec, world: World) -> None:
    """Refuse several ranks for a run that needs a single process."""
    if world.size == 1:
        return
    if spec.recipe.uncut:
        raise UserError(
            f"--objective {spec.text['objective']} trains the uncut model in one process, but {world.size} "
            f"ranks were started: start it without torchrun, or choose greedy or sgr"
        )
    if spec.options.measure_bp_gap is not None:
        raise UserError(
            f"--measure-bp-gap needs all stages in one process, but {world.size} ranks were started: "
            f"start it without torchrun, or leave the option out"
        )


def _check_start(start: Start, plan: Timetable, *, alone: bool) -> None:
    between = start.step > 0 and plan.update_at(start.step - 1) != start.step
    if plan.together > 1 and between and not alone:
        raise UserError(
            f"the snapshot is of batch {start.step}, between two updates of {plan.update_every} batches, "
            f"where each replica had to have gradients of its own: give a snapshot of another batch, or go "
            f"on in one process"
        )
