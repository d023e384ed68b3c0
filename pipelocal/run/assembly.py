"""Connects stages and edges: builds a worker for each stage of a rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipelocal.heads.guided import classifier_copy
from pipelocal.objective import WayBack
from pipelocal.pipeline.bp_gap import BackPropagationGap
from pipelocal.pipeline.callbacks import Callback
from pipelocal.pipeline.guide import Guide
from pipelocal.pipeline.hearing import Hearing
from pipelocal.pipeline.records import Report
from pipelocal.pipeline.way_back import Gradients, TakesAndGives, WayBackEnds
from pipelocal.pipeline.worker import Save, Worker
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.contracts import Contracts
from pipelocal.run.edges import Edges
from pipelocal.run.options import RunOptions
from pipelocal.stage.freezing import Freezing
from pipelocal.stage.stage import Stage
from pipelocal.telemetry.actions import Recorder
from pipelocal.transport.edge import Receiver, ReceiverBack, Sender
from pipelocal.transport.inprocess import InProcessEdge

NO_EDGES = Edges()


class Assembly:
    """Builds the workers of one rank, and the edges between them.

    Args:
        options: the run's options.
        blueprint: the cut model.
        device: this rank's device.
        batch_size: number of rows in the largest batch.
        callbacks: called with what stages have done.
        report: receives the records of the stages.
        recorder: receives what stages and edges do, and when; None to record nothing.
    """

    def __init__(
        self,
        options: RunOptions,
        blueprint: Blueprint,
        device: torch.device,
        *,
        batch_size: int,
        callbacks: Sequence[Callback] = (),
        report: Report,
        recorder: Recorder | None = None,
    ) -> None:
        self._options = options
        self._blueprint = blueprint
        self._callbacks = callbacks
        self._device = device
        self._report = report
        self._recorder = recorder or Recorder()
        self._freezing: dict[int, Freezing] = blueprint.recipe.freezing(blueprint.stages)
        self.contracts = Contracts(options, blueprint, batch_size=batch_size)
        """What travels on every edge."""

    def workers(
        self,
        stages: Sequence[Stage],
        incoming: Receiver,
        edges: Edges = NO_EDGES,
        *,
        save: Save | None = None,
        reports: bool = True,
    ) -> list[Worker]:
        """Build a worker per stage, with in-process edges between them.

        Args:
            stages: the rank's stages, in order.
            incoming: what feeds the first stage.
            edges: to other ranks.
            save: saves a stage's snapshot; None if no snapshots are taken.
            reports: whether these workers report; one of several replicas reports for all.
        """
        every = self._options.measure_bp_gap
        gap = None if every is None else BackPropagationGap(stages)
        contracts = self.contracts
        inner = [InProcessEdge(contracts.forward(stage.number)) for stage in stages[:-1]]
        receivers, senders = [incoming, *inner], [*inner, edges.after]
        return [
            Worker(
                stage=stage,
                device=self._device,
                incoming=receiver,
                outgoing=sender,
                encode_delta=self._blueprint.summary(stage.number).encode,
                report=self._report if reports else _report_nothing,
                log_every=self._options.log_every,
                recorder=self._recorder,
                freezing=self._freezing.get(stage.number),
                hearing=self._hearing(stage.number),
                save=save,
                gap=gap,
                gap_every=every or 1,
                votes=contracts.votes.travel,
                callbacks=self._callbacks,
                messages=self._blueprint.messages(stage.number),
                way_back=way_back,
            )
            for stage, receiver, sender, way_back in zip(
                stages, receivers, senders, self._ways_back(stages, edges), strict=True
            )
        ]

    def _ways_back(self, stages: Sequence[Stage], edges: Edges) -> list[WayBackEnds]:
        """Return every stage's ends of the edges back."""
        way = self.contracts.way_back
        if way is None:
            return [WayBackEnds() for _ in stages]
        inner = [InProcessEdge(self.contracts.back(stage.number)) for stage in stages[1:]]
        senders: list[Sender | None] = [edges.to_previous, *inner]
        receivers: list[ReceiverBack | None] = [*inner, edges.from_next]
        return [
            WayBackEnds(
                way=way,
                own=self._own(stage, way),
                to_previous=sender,
                from_next=receiver,
                hops=self._blueprint.stages - stage.number,
            )
            for stage, sender, receiver in zip(stages, senders, receivers, strict=True)
        ]

    def _own(self, stage: Stage, way: WayBack) -> TakesAndGives:
        """Return what a stage does with what flows back."""
        if not way.weights:
            return Gradients(stage, way.name)
        last = stage.number == self._blueprint.stages
        return Guide(stage, stage.head if last else classifier_copy(stage.head), way)

    def _hearing(self, stage: int) -> Hearing:
        """Return which heads up to a stage's are heard."""
        blueprint = self._blueprint
        silent = [number for number in range(1, stage + 1) if blueprint.silent(number)]
        return Hearing(
            own=stage not in silent,
            heads=stage - len(silent),
            delta=self.contracts.sends_delta(stage),
        )


def _report_nothing(_record: dict[str, Any]) -> None:
    pass
