"""Joins stages and edges: gives every stage of a rank its worker."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from pipelocal.build import Blueprint
from pipelocal.config import TrainConfig
from pipelocal.control import CAUSE_PATIENCE_S, ControlPlane
from pipelocal.freezing import Freezing
from pipelocal.pipeline.worker import Report, Save, Worker
from pipelocal.stage import Stage
from pipelocal.telemetry.actions import Recorder
from pipelocal.telemetry.bp_gap import BackPropagationGap
from pipelocal.transport.connect import Link, connect
from pipelocal.transport.contract import Contract, edge_contract
from pipelocal.transport.edge import Receiver, Sender
from pipelocal.transport.inprocess import InProcessEdge
from pipelocal.transport.remote import RemoteReceiver, RemoteSender
from pipelocal.world import START_TIMEOUT_S, World, describe_device


class Assembly:
    """Makes the edges and the workers of one rank.

    Args:
        config: the run's options.
        blueprint: the cut model.
        device: this rank's device.
        report: takes the records of the stages.
        recorder: takes what stages and edges do, and when; None for nobody.
    """

    def __init__(
        self,
        config: TrainConfig,
        blueprint: Blueprint,
        device: torch.device,
        *,
        report: Report,
        recorder: Recorder | None = None,
    ) -> None:
        self._config = config
        self._blueprint = blueprint
        self._device = device
        self._report = report
        self._recorder = recorder or Recorder()
        self._reconciles = config.objective == "sgr"
        self._freezing: dict[int, Freezing] = config.freezing(blueprint.stages)

    def contract(self, source: int) -> Contract:
        """The contract of the edge from stage ``source`` to the next."""
        summary = self._blueprint.summary(source, self._config) if self._reconciles else None
        return edge_contract(
            source=source,
            feature_shape=self._blueprint.output_shape(source),
            target_shape=self._blueprint.target_shape,
            classes=self._blueprint.chain.classes,
            max_rows=self._config.batch_size,
            form=self._config.wire,
            channels_last=self._config.channels_last,
            delta_shape=None if summary is None else summary.shape,
            delta_dtype=torch.float32 if summary is None else summary.dtype,
        )

    def workers(
        self,
        stages: Sequence[Stage],
        incoming: Receiver,
        outgoing: Sender | None,
        *,
        save: Save | None = None,
    ) -> list[Worker]:
        """A worker per stage, with in-process edges between them.

        Args:
            stages: the rank's stages, in order.
            incoming: what feeds the first of them.
            outgoing: where the last one sends; None at the end of the network.
            save: keeps a stage's snapshot; None where none will be taken.
        """
        every = self._config.measure_bp_gap
        gap = None if every is None else BackPropagationGap(stages)
        edges = [InProcessEdge(self.contract(stage.number)) for stage in stages[:-1]]
        receivers, senders = [incoming, *edges], [*edges, outgoing]
        return [
            Worker(
                stage=stage,
                device=self._device,
                incoming=receiver,
                outgoing=sender,
                encode_delta=self._blueprint.summary(stage.number, self._config).encode,
                report=self._report,
                log_every=self._config.log_every,
                recorder=self._recorder,
                freezing=self._freezing.get(stage.number),
                save=save,
                gap=gap,
                gap_every=every or 1,
            )
            for stage, receiver, sender in zip(stages, receivers, senders, strict=True)
        ]

    def remote_edges(
        self, world: World, control: ControlPlane, first: int, last: int
    ) -> tuple[RemoteReceiver | None, RemoteSender | None]:
        """The edges to the ranks before and after this one, where there are any.

        Args:
            world: the ranks.
            control: for the agreement on the contracts, and to learn of failures.
            first: number of this rank's first stage.
            last: number of its last stage.
        """
        rank, config = world.rank, self._config
        links = []
        if rank > 0:
            before = self.contract(first - 1)
            links.append(Link(contract=before, own_rank=rank, peer_rank=rank - 1))
        if rank < world.size - 1:
            links.append(Link(contract=self.contract(last), own_rank=rank, peer_rank=rank + 1))
        names = {link.peer_rank: link.peer_name for link in links}
        control.watch_neighbours(names, stage=last)
        wires = connect(
            links,
            size=world.size,
            rank=rank,
            device=self._device,
            device_name=describe_device(self._device),
            edge=config.edge,
            put=control.put,
            wait_for=lambda key: control.wait_for(key, timeout_s=START_TIMEOUT_S),
        )
        receiver = sender = None
        for link, wire in zip(links, wires, strict=True):
            if link.sending:
                sender = RemoteSender(
                    link.contract,
                    wire,
                    window=config.window,
                    peer=link.peer_name,
                    check=control.check,
                    timeout_s=edge_patience(config.timeout),
                    waits=partial(control.roll_call.waits, link.peer_rank),
                    recorder=self._recorder,
                )
            else:
                receiver = RemoteReceiver(
                    link.contract,
                    wire,
                    window=config.window,
                    peer=link.peer_name,
                    check=control.check,
                    timeout_s=edge_patience(config.timeout),
                    waits=partial(control.roll_call.waits, link.peer_rank),
                    recorder=self._recorder,
                )
        return receiver, sender


def edge_patience(timeout_s: float) -> float:
    """How long an end of an edge waits, so that who hangs is known within ``--timeout``."""
    return timeout_s - min(CAUSE_PATIENCE_S, timeout_s / 2)
