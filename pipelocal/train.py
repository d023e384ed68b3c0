"""Training from options to run folder: joins what is computed, how it moves and in what order.

Every rank runs :func:`train`. Rank 0 also makes the run folder, reads the data, shows the progress
and writes the summary.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

import psutil
import torch
import torch.distributed as dist

from pipelocal.build import Blueprint
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.config import TrainConfig
from pipelocal.control import ControlPlane
from pipelocal.data import load_dataset
from pipelocal.data.batches import BatchStream
from pipelocal.errors import Interrupted, PipelocalError, UserError
from pipelocal.pipeline.placement import place
from pipelocal.pipeline.source import Plan, Source
from pipelocal.pipeline.worker import Worker
from pipelocal.stage import Stage
from pipelocal.telemetry.memory import device_peak_bytes
from pipelocal.telemetry.reporter import Reporter
from pipelocal.telemetry.view import StageRow, make_view
from pipelocal.transport.connect import Link, connect
from pipelocal.transport.contract import Contract, edge_contract
from pipelocal.transport.edge import Receiver, Sender
from pipelocal.transport.inprocess import InProcessEdge
from pipelocal.transport.remote import RemoteReceiver, RemoteSender
from pipelocal.transport.wires import Wire
from pipelocal.world import World, describe_device

START_TIMEOUT_S = 300.0
FINISH_TIMEOUT_S = 600.0


def train(
    config: TrainConfig, world: World | None = None, *, stream: TextIO | None = None
) -> dict[str, Any] | None:
    """Train as the options say.

    Args:
        config: the options.
        world: the ranks; by default as torchrun describes them, or this process alone.
        stream: where progress is shown (rank 0); standard output by default.

    Returns:
        The summary on rank 0, None on the others.

    Raises:
        UserError: the options, the data or the run folder cannot be used.
        StageError: a stage of this rank could not go on.
        Interrupted: another rank failed.
    """
    config.validate()
    blueprint = Blueprint.draw(config)
    world = world or World.from_environment()
    placement = _check_placement(config, world)
    torch.set_num_threads(config.threads)
    device = world.device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    control = ControlPlane(world)
    run = _Run(config, blueprint, placement, world, device, control)
    with _failures_told(control, run):
        summary = run.execute(stream or sys.stdout)
    return summary


def _check_placement(config: TrainConfig, world: World) -> list[range]:
    if config.objective == "bp" and world.size > 1:
        raise UserError(
            f"--objective bp trains the uncut model in one process, but {world.size} ranks were "
            f"started: start it without torchrun, or choose greedy or sgr"
        )
    return place(config.stage_count, world.size)


@contextmanager
def _failures_told(control: ControlPlane, run: _Run) -> Iterator[None]:
    """Make one rank's failure known to all; where another rank was first, raise its account."""
    try:
        yield
    except Interrupted:
        raise
    except BaseException as error:
        own = str(error)
        account = control.fail(error)
        cause = error.__cause__ if isinstance(error, PipelocalError) else error
        if run.folder is not None and not isinstance(cause, PipelocalError | OSError | None):
            run.folder.write_traceback(control.world.rank, error)
        if own not in account:
            raise Interrupted(account) from error
        raise
    finally:
        control.stop_watching()


@dataclass
class _Facts:
    """What rank 0 finds out and the others are told."""

    folder: str
    steps_per_epoch: int
    train_samples: int


class _Run:
    """One rank's part of a run."""

    def __init__(
        self,
        config: TrainConfig,
        blueprint: Blueprint,
        placement: list[range],
        world: World,
        device: torch.device,
        control: ControlPlane,
    ) -> None:
        self.config = config
        self.blueprint = blueprint
        self.placement = placement
        self.world = world
        self.device = device
        self.control = control
        self.folder: RunFolder | None = None

    def execute(self, stream: TextIO) -> dict[str, Any] | None:
        """Set up, train, save, and leave together."""
        batches, facts = self._prepare()
        plan = Plan(
            epochs=self.config.epochs,
            steps_per_epoch=facts.steps_per_epoch,
            max_steps=self.config.max_steps,
            evaluate_every=self.config.evaluate_every,
        )
        folder = self.folder = RunFolder(facts.folder)
        stages = self._build_stages(plan)
        source = Source(batches, plan, self.device) if batches else None
        workers = self._build_workers(stages, source)
        reporter = self._reporter(folder, plan, stream) if self.world.rank == 0 else None
        try:
            if reporter:
                reporter.start()
            started = time.perf_counter()
            run_stream(workers, self.control.check)
            seconds = time.perf_counter() - started
            for worker in workers:
                folder.save_stage(worker.stage.number, worker.stage.state_dict())
                self.control.post(self._final_record(worker))
            summary = self._summarise(folder, plan, reporter, seconds) if reporter else None
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

    def _prepare(self) -> tuple[BatchStream | None, _Facts]:
        """Rank 0 makes the folder and reads the data; the others learn what they must know."""
        config = self.config
        if self.world.rank > 0:
            return None, _Facts(**self.control.wait_for("facts", timeout_s=START_TIMEOUT_S))
        dataset = load_dataset(config.data, root=config.data_root, seed=config.seed)
        batches = BatchStream(
            dataset, batch_size=config.batch_size, seed=config.seed, drop_last=config.drop_last
        )
        facts = _Facts(
            folder=str(RunFolder.create(config).path),
            steps_per_epoch=batches.steps_per_epoch,
            train_samples=len(dataset.train_x),
        )
        self.control.put("facts", facts.__dict__)
        return batches, facts

    def _build_stages(self, plan: Plan) -> list[Stage]:
        return [
            self.blueprint.build_stage(
                number, self.config, device=self.device, total_steps=plan.total_steps
            )
            for number in self.placement[self.world.rank]
        ]

    def _contract(self, source: int) -> Contract:
        """The contract of the edge from stage ``source`` to the next."""
        return edge_contract(
            source=source,
            feature_shape=self.blueprint.output_shape(source),
            target_shape=(),
            classes=self.blueprint.chain.classes,
            max_rows=self.config.batch_size,
            with_delta=self.config.objective == "sgr",
        )

    def _build_workers(self, stages: list[Stage], source: Source | None) -> list[Worker]:
        first, last = stages[0].number, stages[-1].number
        receiver, sender = self._connect(first, last)
        incoming: Receiver | None = source or receiver
        workers = []
        for stage in stages:
            assert incoming is not None
            inside = InProcessEdge(self._contract(stage.number)) if stage.number != last else None
            outgoing: Sender | None = inside or sender
            workers.append(
                Worker(
                    stage=stage,
                    device=self.device,
                    incoming=incoming,
                    outgoing=outgoing,
                    sends_delta=self.config.objective == "sgr",
                    report=self.control.post,
                    log_every=self.config.log_every,
                )
            )
            incoming = inside
        return workers

    def _connect(self, first: int, last: int) -> tuple[RemoteReceiver | None, RemoteSender | None]:
        """The edges to the ranks before and after this one, where there are any."""
        rank, config = self.world.rank, self.config
        links = []
        if rank > 0:
            links.append(
                Link(contract=self._contract(first - 1), own_rank=rank, peer_rank=rank - 1)
            )
        if rank < self.world.size - 1:
            links.append(Link(contract=self._contract(last), own_rank=rank, peer_rank=rank + 1))
        if not links:
            return None, None
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("group", self.world.store),
            rank=rank,
            world_size=self.world.size,
        )
        wires = connect(
            links,
            device=self.device,
            device_name=describe_device(self.device),
            edge=config.edge,
            put=self.control.put,
            wait_for=lambda key: self.control.wait_for(key, timeout_s=START_TIMEOUT_S),
        )
        receiver = sender = None
        for link, wire in zip(links, wires, strict=True):
            if link.sending:
                sender = self._sender(link, wire)
            else:
                receiver = self._receiver(link, wire)
        return receiver, sender

    def _sender(self, link: Link, wire: Wire) -> RemoteSender:
        return RemoteSender(
            link.contract,
            wire,
            window=self.config.window,
            peer=link.peer_name,
            check=self.control.check,
            timeout_s=self.config.timeout,
        )

    def _receiver(self, link: Link, wire: Wire) -> RemoteReceiver:
        return RemoteReceiver(
            link.contract,
            wire,
            peer=link.peer_name,
            check=self.control.check,
            timeout_s=self.config.timeout,
        )

    def _reporter(self, folder: RunFolder, plan: Plan, stream: TextIO) -> Reporter:
        rows = [
            StageRow(stage=stage, rank=rank, units=self.blueprint.units(stage))
            for rank, stages in enumerate(self.placement)
            for stage in stages
        ]
        view = make_view(stream, plain=self.config.plain)
        config = self.config
        view.start(
            f"{config.model} on {config.data}, {config.objective}: {len(rows)} stage(s) on "
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

    def _final_record(self, worker: Worker) -> dict[str, Any]:
        train, evaluation = worker.last_train, worker.last_evaluation
        return {
            "event": "final",
            "stage": worker.stage.number,
            "rank": self.world.rank,
            "units": self.blueprint.units(worker.stage.number),
            "loss": train and train.loss,
            "accuracy": train and train.accuracy,
            "eval_accuracy": evaluation and evaluation.accuracy,
            "ensemble_accuracy": worker.ensemble_accuracy,
            "steps": worker.stage.steps,
            "samples_per_second": worker.meter.samples_per_second,
            "busy_fraction": worker.meter.busy_fraction,
            "peak_memory_bytes": worker.peak_memory_bytes,
            "process_memory_bytes": psutil.Process().memory_info().rss,
            "device_peak_bytes": device_peak_bytes(self.device),
            "sent_bytes": worker.outgoing.sent_bytes if worker.outgoing else 0,
            "received_bytes": worker.incoming.received_bytes,
        }

    def _summarise(
        self, folder: RunFolder, plan: Plan, reporter: Reporter, seconds: float
    ) -> dict[str, Any]:
        """Wait for all stages' last records and write the summary."""
        deadline = time.monotonic() + FINISH_TIMEOUT_S
        while len(reporter.finals) < self.config.stage_count:
            self.control.check()
            if time.monotonic() > deadline:
                raise UserError(
                    f"waited {FINISH_TIMEOUT_S:g} s for the other ranks to save their stages"
                )
            time.sleep(0.01)
        stages = sorted(reporter.finals, key=lambda record: int(record["stage"]))
        last = stages[-1]
        summary = {
            "model": self.config.model,
            "data": self.config.data,
            "objective": self.config.objective,
            "seed": self.config.seed,
            "world_size": self.world.size,
            "device": self.device.type,
            "torch": torch.__version__,
            "steps": plan.total_steps,
            "seconds": seconds,
            "samples_per_second": last["samples_per_second"],
            "eval_accuracy": last["eval_accuracy"],
            "ensemble_accuracy": last["ensemble_accuracy"],
            "stages": [
                {
                    k: v
                    for k, v in stage.items()
                    if k not in ("event", "time_s", "ensemble_accuracy")
                }
                for stage in stages
            ],
        }
        folder.write_summary(summary)
        reporter.stop()
        reporter.view.message(
            f"accuracy {summary['eval_accuracy']:.4f} (last head), "
            f"{summary['ensemble_accuracy']:.4f} (ensemble) after {plan.total_steps} batches "
            f"in {seconds:.1f} s; run folder {folder.path}"
        )
        return summary


def run_stream(workers: list[Worker], check: Any) -> None:
    """Let the stages of this rank take turns, one event each, until the stream ends."""
    running = True
    while running:
        check()
        for worker in workers:
            running = worker.advance()
