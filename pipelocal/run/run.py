"""One rank's part of a run: joins what is computed, how it moves and in what order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TextIO

import torch
import torch.distributed as dist

from pipelocal.checkpoint.description import ModelDescription, own_code
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.config import TrainConfig
from pipelocal.data.fingerprint import describe_data
from pipelocal.errors import (
    StageError,
    UserError,
)
from pipelocal.objective import ExactReconciliation, FirstOrderReconciliation, Objective
from pipelocal.objective.probe import check_double_backward, check_one_row, random_input
from pipelocal.partition import other_reading
from pipelocal.partition.replicas import replicas_text
from pipelocal.pipeline.markers import Markers
from pipelocal.pipeline.placement import Placement, place
from pipelocal.pipeline.source import Source
from pipelocal.pipeline.timetable import Timetable
from pipelocal.pipeline.worker import Worker, run_stream
from pipelocal.ranks.breakable import breakable
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.host import set_up_host, use_interface
from pipelocal.ranks.world import World
from pipelocal.replicas.join import ReplicaOptions, join_replicas
from pipelocal.run.agreement import check_same_code, check_same_data, check_same_model
from pipelocal.run.assembly import Assembly
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.prepare import Findings, begin, open_data, prepare
from pipelocal.run.recovery import Start, load_snapshot
from pipelocal.run.snapshots import Snapshots
from pipelocal.run.summary import describe, final_record, summarise
from pipelocal.stage.purity import Demands, check_extra_state, check_purity
from pipelocal.stage.stage import Stage
from pipelocal.system.signals import Wishes
from pipelocal.system.streams import tell
from pipelocal.telemetry.actions import Recorder
from pipelocal.telemetry.clock import seconds_behind_rank_0
from pipelocal.telemetry.progress import StageRow
from pipelocal.telemetry.reporter import Reporter
from pipelocal.telemetry.trace import merge_parts, write_part
from pipelocal.telemetry.view import make_view
from pipelocal.transport.edge import Receiver, Sender
from pipelocal.transport.groups import ReplicaGroup

CONNECT_GRACE_S = 10.0
"""Seconds that all connections together may take longer than the wait for one rank."""


class Run:
    """One rank's part of a run.

    Args:
        config: the options, which are valid one by one.
        world: the ranks.
        control: the control plane.
    """

    def __init__(self, config: TrainConfig, world: World, control: ControlPlane) -> None:
        self.config = config
        self.world = world
        self.control = control
        self.folder: RunFolder | None = None
        self.wishes = Wishes()
        self.stopped_at: int | None = None
        """Training batches after which a signal ended the stream; None if it came to its end."""
        self.workers: list[Worker] = []
        self.recorder = Recorder(trace=config.trace, print_transfers=config.debug_transfers)
        self._clock_offset_s = 0.0

    def execute(self, stream: TextIO) -> dict[str, Any] | None:
        """Set up, train, save, and leave together."""
        model = self._draw()
        prepared = prepare(
            self.config, self.blueprint, model, self.device, self.world, self.control
        )
        facts, folder, batches = prepared.facts, prepared.folder, prepared.batches
        if facts.finished:
            return self._leave_finished(folder, stream)
        self._settle(facts)
        placement = self.placement
        seat = placement.seat(self.world.rank)
        if batches is None and seat.index == 0:
            # Every replica of the first stage reads its own batches.
            batches = open_data(self.config)
            check_same_data(facts.data, describe_data(batches.dataset)["fingerprint"])
        start = Start(**facts.start)
        plan = Timetable.of(
            self.config,
            facts.steps_per_epoch,
            epochs_before=start.epochs_before,
            steps_before=start.steps_before,
        )
        _check_start(start, plan, alone=self.world.size == 1)
        stages = self._build_stages(plan, facts, seat.block.stages)
        assembly = Assembly(
            self.config,
            self.blueprint,
            self.device,
            report=self.control.post,
            recorder=self.recorder,
        )
        before, after, group = self._connected(assembly, placement)
        # Only now: all ranks have built their stages, so a start that fails leaves no folder behind.
        self.folder = folder = begin(prepared, self.config, start, self.control)
        snapshots = Snapshots(
            self.blueprint,
            self.config,
            folder,
            self.control,
            own=seat.block.stages,
            cut=facts.cut,
            plan=plan,
            writes=seat.replica == 0,
        )
        incoming: Receiver | None = before
        if batches is not None:
            incoming = Source(
                batches,
                plan,
                self.device,
                start=start.step,
                evaluated=start.evaluated,
                markers=self._markers(start.step, group, snapshots),
                deal=seat.deal,
            )
        assert incoming is not None
        workers = self.workers = assembly.workers(
            stages, incoming, after, save=snapshots.save, reports=seat.replica == 0
        )
        for worker in workers:
            if start.step:
                place_of_this = {"replica": seat.replica, "replicas": seat.block.replicas}
                load_snapshot(self.blueprint, worker, start, **place_of_this)
            if group is not None:
                join_replicas(worker.stage, group, _replication(self.config), seed=self.config.seed)
        reporter = self._reporter(folder, plan, stream) if self.world.rank == 0 else None
        try:
            if reporter:
                reporter.start()
            heard = self.wishes.heard() if self.config.takes_snapshots else nullcontext()
            with self._traced(folder), heard:
                run_stream(workers, self.control.check)
                snapshots.close()
            if workers[0].evaluation.step != plan.total_steps:
                self.stopped_at = workers[0].stage.steps
                self.control.leave()
                return None
            for worker in workers:
                snapshots.save_end(worker)
                self.control.post(final_record(worker, self.world.rank, self.device))
            summary = None
            if reporter:
                finals = self._finals(reporter, placement)
                if self.config.trace:  # by now every rank has written its part
                    merge_parts(folder.path, self.world.size)
                snapshots.complete_end(plan.total_steps)
                summary = summarise(
                    self.config, self.world.size, finals, no_ensemble=assembly.votes.why_not
                )
                folder.write_summary(summary)
                reporter.stop()
                reporter.view.close()
                reporter.view.message(describe(summary, folder.path))
            self.control.leave()
        finally:
            if reporter:
                reporter.stop()
                reporter.view.close()
            for worker in workers:
                worker.close()
        if self.world.size > 1:
            dist.destroy_process_group()
        return summary

    def _draw(self) -> ModelDescription:
        """Draw the model and see that it is every rank's; choose where this one computes.

        Raises:
            UserError: it cannot be made, or not be trained by so many ranks.
        """
        config, world = self.config, self.world
        use_interface(config.interface)
        self.blueprint = Blueprint.draw(config)
        model = ModelDescription.of(config.model, self.blueprint.chain)
        check_same_model(model, self.control)
        check_same_code(own_code(config), self.control)
        if config.cut is not None and world.rank == 0:
            other = other_reading(self.blueprint.chain, config.cut)
            if other is not None:
                tell(other)
        _check_alone(config, world)
        counts = config.replica_counts(self.blueprint.stages)
        if counts is not None:  # otherwise rank 0 will choose them
            place(self.blueprint.stages, world.size, counts)
        set_up_host(config.threads)
        self.device = world.device(config.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        return model

    def trouble(self) -> StageError | None:
        """What this rank knows to be wrong with its neighbours."""
        edges = (worker.trouble() for worker in self.workers)
        return next(filter(None, (self.control.lost, *edges)), None)

    @contextmanager
    def _traced(self, folder: RunFolder) -> Iterator[None]:
        """Keep this rank's part of a trace, if one is wanted, whatever comes."""
        try:
            yield
        finally:
            if self.config.trace:
                rank = self.world.rank
                write_part(folder.path, rank, self.recorder, self._clock_offset_s)

    def _markers(
        self, done: int, group: ReplicaGroup | None, snapshots: Snapshots
    ) -> Markers | None:
        config = self.config
        if not config.takes_snapshots:
            return None
        return Markers(
            every=config.snapshot_every,
            seconds=60 * config.snapshot_minutes,
            wishes=self.wishes,
            done=done,
            price=lambda: snapshots.price,
            agree=None if group is None else group.greatest,
        )

    def _leave_finished(self, folder: RunFolder, stream: TextIO) -> dict[str, Any] | None:
        """Nothing is left to do: its summary again, on rank 0."""
        summary = None
        if self.world.rank == 0:
            summary = folder.summary()
            stream.write(f"it was finished before: {describe(summary, folder.path)}\n")
        self.control.leave()
        return summary

    def _settle(self, facts: Findings) -> None:
        """Take over what rank 0 chose; the resolved options name what was measured."""
        if self.config.replicas == "auto":
            self.config = replace(self.config, replicas=replicas_text(facts.replicas))
        self.blueprint = self.blueprint.cut_at(facts.cut)
        if self.config.balance != "count":
            self.config = replace(self.config, cut=self.blueprint.cut_text)
        self.placement = place(self.blueprint.stages, self.world.size, facts.replicas)

    def _build_stages(self, plan: Timetable, facts: Findings, numbers: range) -> list[Stage]:
        stages = []
        for number in numbers:
            stage = self.blueprint.build_stage(
                number, self.config, device=self.device, total_steps=plan.total_steps
            )
            x_shape = self.blueprint.output_shape(number - 1)
            if facts.smallest_batch == 1 and number > 1:
                check_one_row(stage.body, stage.head, x_shape, stage=number)
            if isinstance(stage.objective, ExactReconciliation):
                check_double_backward(stage.body, stage.head, x_shape, stage=number)
            replicas = facts.replicas[number - 1]
            check_extra_state(stage.body, stage.head, replicas=replicas, stage=number)
            demands = _demands(self.config, stage.objective, replicas)
            dtype = self.blueprint.chain.input_dtype if number == 1 else torch.float32
            x = random_input(stage.body, stage.head, (2, *x_shape), dtype)
            check_purity(stage.body, stage.head, x, demands, stage=number)
            stages.append(stage)
        return stages

    def _connected(
        self, assembly: Assembly, placement: Placement
    ) -> tuple[Receiver | None, Sender | None, ReplicaGroup | None]:
        """See :meth:`Assembly.remote_edges`; a wait for a library that never ends is broken off."""
        # What waits in it for a certain rank has the same patience, begins later, and tells more.
        timeout_s = self.config.start_timeout + CONNECT_GRACE_S
        try:
            return breakable(
                lambda: self._open_edges(assembly, placement),
                check=self.control.check,
                timeout_s=timeout_s,
            )
        except TimeoutError as error:
            raise UserError(
                f"the ranks did not connect to each other within {timeout_s:g} s: let them through on "
                f"any port, and nothing but them (docs/several-nodes.md), or give a longer --start-timeout"
            ) from error

    def _open_edges(
        self, assembly: Assembly, placement: Placement
    ) -> tuple[Receiver | None, Sender | None, ReplicaGroup | None]:
        """See :meth:`Assembly.remote_edges`."""
        if self.world.size == 1:
            return None, None, None
        if self.device.type == "cuda":  # every thread has a current device of its own
            torch.cuda.set_device(self.device)
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("group", self.world.store),
            rank=self.world.rank,
            world_size=self.world.size,
        )
        if self.config.trace:
            self._clock_offset_s = seconds_behind_rank_0()
        return assembly.remote_edges(self.world, self.control, placement)

    def _reporter(self, folder: RunFolder, plan: Timetable, stream: TextIO) -> Reporter:
        rows = [
            StageRow(stage=stage, rank=_listed(block.ranks), units=self.blueprint.units(stage))
            for block in self.placement.blocks
            for stage in block.stages
        ]
        view = make_view(stream, plain=self.config.plain)
        config = self.config
        objective = f"{config.objective}, bp-free" if config.bp_free else config.objective
        view.start(
            f"{config.model} on {config.data}, {objective}: {len(rows)} stage(s) on "
            f"{self.world.size} rank(s), {plan.total_steps} batches of {config.batch_size}, "
            f"{folder.path}"
        )
        return Reporter(
            take=self.control.take_records,
            on_error=self.control.fail,
            metrics=folder.metrics,
            view=view,
            rows=rows,
            total_steps=plan.total_steps,
            epochs=plan.epochs_begun,
        )

    def _finals(self, reporter: Reporter, placement: Placement) -> list[dict[str, Any]]:
        """All stages' last records, one of each replica, as soon as every stage is saved."""
        count = sum(len(block.stages) * block.replicas for block in placement.blocks)
        while len(reporter.finals) < count:
            self.control.check()  # raises when one of them cannot
            time.sleep(0.01)
        return reporter.finals


def _replication(config: TrainConfig) -> ReplicaOptions:
    return ReplicaOptions(
        replicate=config.replicate,
        compress=config.compress,
        compress_share=config.compress_share,
        compress_rank=config.compress_rank,
        sync_batchnorm=config.sync_batchnorm,
    )


def _demands(config: TrainConfig, objective: Objective, replicas: int) -> Demands:
    """What a run asks of a stage with this objective and so many replicas."""
    reasons = {
        f"--objective {config.objective}": isinstance(objective, FirstOrderReconciliation),
        "--checkpoint-activations": config.checkpoint_activations is not None,
        "--measure-bp-gap": config.measure_bp_gap is not None,
    }
    again = next((option for option, there in reasons.items() if there), None)
    return Demands(again=again, saved=config.takes_snapshots, replicas=replicas > 1)


def _check_alone(config: TrainConfig, world: World) -> None:
    """Refuse several ranks where the options want one process."""
    if world.size == 1:
        return
    if config.objective == "bp":
        raise UserError(
            f"--objective bp trains the uncut model in one process, but {world.size} ranks were "
            f"started: start it without torchrun, or choose greedy or sgr"
        )
    if config.measure_bp_gap is not None:
        raise UserError(
            f"--measure-bp-gap needs all stages in one process, but {world.size} ranks were started: "
            f"start it without torchrun, or leave the option out"
        )


def _listed(ranks: Sequence[int]) -> str:
    """Such as ``3``, or ``1,2`` for two replicas."""
    return ",".join(map(str, ranks))


def _check_start(start: Start, plan: Timetable, *, alone: bool) -> None:
    between = start.step > 0 and plan.update_at(start.step - 1) != start.step
    if plan.together > 1 and between and not alone:
        raise UserError(
            f"the snapshot is of batch {start.step}, between two updates of {plan.update_every} batches, "
            f"where each replica had to have gradients of its own: give a snapshot of another batch, or go "
            f"on in one process"
        )
