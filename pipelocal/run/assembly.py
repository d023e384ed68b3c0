"""Connects stages and edges: builds a worker for each stage of a rank."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from pipelocal.pipeline.bp_gap import BackPropagationGap
from pipelocal.pipeline.callbacks import Callback
from pipelocal.pipeline.hearing import Hearing
from pipelocal.pipeline.placement import Placement, Seat
from pipelocal.pipeline.records import Report
from pipelocal.pipeline.votes import Votes
from pipelocal.pipeline.worker import Save, Worker
from pipelocal.ranks.control import CAUSE_PATIENCE_S, ControlPlane
from pipelocal.ranks.device import describe_device
from pipelocal.ranks.world import World
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.options import RunOptions
from pipelocal.stage.freezing import Freezing
from pipelocal.stage.stage import Stage
from pipelocal.telemetry.actions import Recorder
from pipelocal.transport.connect import Link, connect
from pipelocal.transport.contract import Contract, edge_contract
from pipelocal.transport.deal import Deal
from pipelocal.transport.edge import Receiver, Sender
from pipelocal.transport.groups import ReplicaGroup, open_group
from pipelocal.transport.inprocess import InProcessEdge
from pipelocal.transport.remote_receiver import RemoteReceiver
from pipelocal.transport.remote_sender import RemoteSender
from pipelocal.transport.replicated import CollectingReceiver, DealingSender


class Assembly:
    """Builds the edges and the workers of one rank.

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
        self._batch_size = batch_size
        self._callbacks = callbacks
        self._device = device
        self._report = report
        self._recorder = recorder or Recorder()
        self._reconciles = blueprint.recipe.objective.reconcile_every is not None
        self._freezing: dict[int, Freezing] = blueprint.recipe.freezing(blueprint.stages)
        edges = [self._contract(source, votes=True) for source in range(1, blueprint.stages)]
        self.votes = Votes.of(options.votes, edges)
        """Whether the heads' votes are sent over the edges."""

    def contract(self, source: int) -> Contract:
        """Return the contract of the edge from stage ``source`` to the next."""
        return self._contract(source, votes=self.votes.travel)

    def _contract(self, source: int, *, votes: bool) -> Contract:
        summary = self._blueprint.summary(source) if self._sends_delta(source) else None
        return edge_contract(
            source=source,
            x=self._blueprint.passed_on(source),
            target=self._blueprint.info.target,
            train_target=self._blueprint.info.train_target,
            output_shape=self._blueprint.model_output,
            max_rows=self._batch_size,
            form=self._options.wire,
            channels_last=self._options.channels_last,
            delta_shape=None if summary is None else summary.shape,
            delta_dtype=torch.float32 if summary is None else summary.dtype,
            votes=votes,
            relayed=self._blueprint.relayed(source),
        )

    def workers(
        self,
        stages: Sequence[Stage],
        incoming: Receiver,
        outgoing: Sender | None,
        *,
        save: Save | None = None,
        reports: bool = True,
    ) -> list[Worker]:
        """Build a worker per stage, with in-process edges between them.

        Args:
            stages: the rank's stages, in order.
            incoming: what feeds the first stage.
            outgoing: where the last stage sends; None at the end of the network.
            save: saves a stage's snapshot; None if no snapshots are taken.
            reports: whether these workers report; one of several replicas reports for all.
        """
        every = self._options.measure_bp_gap
        gap = None if every is None else BackPropagationGap(stages)
        edges = [InProcessEdge(self.contract(stage.number)) for stage in stages[:-1]]
        receivers, senders = [incoming, *edges], [*edges, outgoing]
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
                votes=self.votes.travel,
                callbacks=self._callbacks,
                messages=self._blueprint.messages(stage.number),
            )
            for stage, receiver, sender in zip(stages, receivers, senders, strict=True)
        ]

    def _sends_delta(self, stage: int) -> bool:
        return self._reconciles and self._blueprint.has_delta(stage)

    def _hearing(self, stage: int) -> Hearing:
        """Return which heads up to a stage's are heard."""
        blueprint = self._blueprint
        silent = [number for number in range(1, stage + 1) if blueprint.silent(number)]
        return Hearing(
            own=stage not in silent,
            heads=stage - len(silent),
            delta=self._sends_delta(stage),
        )

    def remote_edges(
        self, world: World, control: ControlPlane, placement: Placement
    ) -> tuple[Receiver | None, Sender | None, ReplicaGroup | None]:
        """Open the edges from the previous ranks and to the next ranks, and the group of replicas.

        Args:
            world: the ranks.
            control: used to agree on the contracts and to learn of failures.
            placement: which rank holds which stages.
        """
        rank, options, seat = world.rank, self._options, placement.seat(world.rank)
        incoming, outgoing = self._links(placement, seat)
        links = [link for link, _ in (*incoming.values(), *outgoing.values())]
        others = [other for other in seat.block.ranks if other != rank]
        names = {link.peer_rank: link.peer_name for link in links}
        names |= {other: f"stage {seat.block.last} (rank {other})" for other in others}
        control.watch_neighbours(names, stage=seat.block.last)

        def wait_for(key: str) -> Any:
            return control.wait_for(key, timeout_s=options.start_timeout)

        channels = connect(
            links,
            pairs=placement.pairs(),
            size=world.size,
            rank=rank,
            device=self._device,
            device_name=describe_device(self._device),
            edge=options.edge,
            put=control.put,
            wait_for=wait_for,
        )
        by_ranks = {link.ranks: channel for link, channel in zip(links, channels, strict=True)}

        def ends(link: Link) -> dict[str, Any]:
            return {
                "contract": link.contract,
                "channel": by_ranks[link.ranks],
                "window": options.window,
                "peer": link.peer_name,
                "check": control.check,
                "timeout_s": edge_patience(options.timeout),
                "waits": partial(control.roll_call.waits, link.peer_rank),
                "recorder": self._recorder,
            }

        receivers = {
            i: RemoteReceiver(**ends(link), deal=deal) for i, (link, deal) in incoming.items()
        }
        senders = {j: RemoteSender(**ends(link)) for j, (link, _) in outgoing.items()}
        group = open_group(
            [block.ranks for block in placement.blocks],
            rank=rank,
            wait_for=wait_for,
            stage=seat.block.last,
            computes_on=self._device,
            check=control.check,
            waits=partial(control.roll_call.waits, others[0] if others else rank),
            timeout_s=edge_patience(options.timeout),
        )
        return _collected(receivers, placement, seat), _dealt(senders, placement, seat), group

    def _links(
        self, placement: Placement, seat: Seat
    ) -> tuple[dict[int, tuple[Link, Deal]], dict[int, tuple[Link, Deal]]]:
        """Return the edges to the previous and next blocks, by the replica there, with their contracts."""
        blocks, own = placement.blocks, seat.block.ranks[seat.replica]
        incoming: dict[int, tuple[Link, Deal]] = {}
        outgoing: dict[int, tuple[Link, Deal]] = {}
        if seat.index > 0:
            before = blocks[seat.index - 1]
            contract = self.contract(before.last)
            for i, j, deal in placement.edges(seat.index - 1):
                if j == seat.replica:
                    peer = before.ranks[i]
                    link = Link(contract=contract, own_rank=own, peer_rank=peer, sending=False)
                    incoming[i] = (link, deal)
        if seat.index < len(blocks) - 1:
            after = blocks[seat.index + 1]
            contract = self.contract(seat.block.last)
            for i, j, deal in placement.edges(seat.index):
                if i == seat.replica:
                    peer = after.ranks[j]
                    link = Link(contract=contract, own_rank=own, peer_rank=peer, sending=True)
                    outgoing[j] = (link, deal)
        return incoming, outgoing


def _report_nothing(_record: dict[str, Any]) -> None:
    pass


def _collected(
    receivers: dict[int, RemoteReceiver], placement: Placement, seat: Seat
) -> Receiver | None:
    if len(receivers) < 2:
        return next(iter(receivers.values()), None)
    replicas = placement.blocks[seat.index - 1].replicas
    return CollectingReceiver(receivers, replicas=replicas, deal=seat.deal, own=seat.block.first)


def _dealt(senders: dict[int, RemoteSender], placement: Placement, seat: Seat) -> Sender | None:
    if len(senders) < 2:
        return next(iter(senders.values()), None)
    return DealingSender(senders, replicas=placement.blocks[seat.index + 1].replicas)


def edge_patience(timeout_s: float) -> float:
    """Return the seconds that an end of an edge waits, so that ``--timeout`` can name the hung rank."""
    return timeout_s - min(CAUSE_PATIENCE_S, timeout_s / 2)
