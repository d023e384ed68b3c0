"""Pipelocal as one of those that take turns: a stage's worker on every rank, and real edges between them."""

from __future__ import annotations

import json
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.pipeline.worker import Worker
from pipelocal.ranks.device import describe_device
from pipelocal.run.assembly import Assembly
from pipelocal.run.edges import Edges
from pipelocal.transport.channels import Channel
from pipelocal.transport.connect import Link, connect
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.inprocess import HandedBatch
from pipelocal.transport.remote_receiver import RemoteReceiver
from pipelocal.transport.remote_sender import RemoteSender
from pipelocal.transport.window import frames, ring_slots

CPU = torch.device("cpu")
PATIENCE_S = 600.0


class Feed:
    """The same batch again and again, as the data of a run.

    Args:
        x: samples ``[B, ...]``.
        target: of them.
    """

    received_bytes, waited_s = 0, 0.0

    def __init__(self, x: Tensor, target: Tensor) -> None:
        self._tensors = {"x": x, "target": target, "ids": torch.arange(len(x))}
        self._number = -1

    def trouble(self) -> None:
        return None

    def receive(self) -> HandedBatch:
        self._number += 1
        number, rows = self._number, len(self._tensors["x"])
        batch = HandedBatch(Header(kind=Kind.TRAIN, number=number, rows=rows, epoch=0, step=number))
        batch.tensors |= self._tensors
        return batch

    def close(self) -> None:
        pass


class Own:
    """This rank's stage of a cut, and its edges; all ranks make it together.

    Args:
        name: tells it from others of the same ranks.
        config: of the training, with as many stages as ranks.
        x: a batch ``[B, ...]``.
        target: of it.
    """

    def __init__(self, name: str, config: TrainConfig, x: Tensor, target: Tensor) -> None:
        rank, self._ranks = dist.get_rank(), dist.get_world_size()
        blueprint = blueprint_of(config)
        stage = blueprint.build_stage(rank + 1, device=CPU, total_steps=10**6)
        assembly = Assembly(config, blueprint, CPU, batch_size=len(x), report=lambda _: None)
        forward = assembly.contracts.forward
        links = []
        if rank > 0:
            links.append(
                Link(contract=forward(rank), own_rank=rank, peer_rank=rank - 1, sending=False)
            )
        if rank < self._ranks - 1:
            links.append(
                Link(contract=forward(rank + 1), own_rank=rank, peer_rank=rank + 1, sending=True)
            )
        ends = {
            link.sending: _end(link, channel, config)
            for link, channel in zip(links, _channels(name, links), strict=True)
        }
        edges = Edges(before=ends.get(False), after=ends.get(True))
        incoming = edges.before or Feed(x, target)
        (self._worker,) = assembly.workers([stage], incoming, edges)
        self._ahead = sum((frames(config.window), ring_slots(config.window)))

    @property
    def worker(self) -> Worker:
        """Of this rank."""
        return self._worker

    def block(self, steps: int) -> float:
        """Seconds of a batch of this rank, with batches before and after them under way as in a long run."""
        before = self._ranks + self._ahead
        ended = []
        for _ in range(before + steps + self._ahead):
            self._worker.advance()
            ended.append(time.perf_counter())
        return (ended[before + steps - 1] - ended[before - 1]) / steps


def _channels(name: str, links: list[Link]) -> list[Channel]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    store = dist.PrefixStore(name, dist.distributed_c10d._get_default_store())

    def put(key: str, value: Any) -> None:
        store.set(key, json.dumps(value))

    def wait_for(key: str) -> Any:
        return json.loads(store.get(key))

    pairs = [(first, first + 1) for turn in (0, 1) for first in range(turn, ranks - 1, 2)]
    return connect(
        links,
        pairs=pairs,
        size=ranks,
        rank=rank,
        device=CPU,
        device_name=describe_device(CPU),
        edge="auto",
        put=put,
        wait_for=wait_for,
    )


def _end(link: Link, channel: Channel, config: TrainConfig) -> Any:
    end = RemoteSender if link.sending else RemoteReceiver
    return end(
        link.contract,
        channel,
        window=config.window,
        peer=link.peer_name,
        check=lambda: None,
        timeout_s=PATIENCE_S,
    )
