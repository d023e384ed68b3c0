"""Opens the edges of a rank: to the ranks before and after it, and the group of its replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pipelocal.pipeline.placement import Placement, Seat
from pipelocal.ranks.control import CAUSE_PATIENCE_S, ControlPlane
from pipelocal.ranks.device import describe_device
from pipelocal.ranks.world import World
from pipelocal.run.contracts import Contracts
from pipelocal.run.options import RunOptions
from pipelocal.telemetry.actions import Recorder
from pipelocal.transport.connect import Link, connect
from pipelocal.transport.contract import Contract
from pipelocal.transport.deal import Deal
from pipelocal.transport.edge import Receiver, ReceiverBack, Sender
from pipelocal.transport.groups import ReplicaGroup, open_group
from pipelocal.transport.remote_receiver import RemoteReceiver
from pipelocal.transport.remote_sender import RemoteSender
from pipelocal.transport.replicated import CollectingReceiver, DealingSender
from pipelocal.transport.window import Window

WINDOW_BACK = 2
"""Messages in flight on an edge back, where nothing ever waits for room: a gradient is taken before another
batch is begun, and of weights those that are used next and those behind them may be under way."""


@dataclass(frozen=True, kw_only=True)
class Edges:
    """The connections of a rank."""

    before: Receiver | None = None
    """The edge from the previous rank or ranks."""
    after: Sender | None = None
    """The edge to the next rank or ranks."""
    to_previous: Sender | None = None
    """The edge back to the previous rank or ranks, if something flows back."""
    from_next: ReceiverBack | None = None
    """The edge back from the next rank or ranks, if something flows back."""
    group: ReplicaGroup | None = None
    """The replicas of this rank's stage."""


@dataclass(frozen=True, kw_only=True)
class _End:
    """An end of an edge of this rank."""

    link: Link
    replica: int
    """Of the other end."""
    deal: Deal


def open_edges(
    options: RunOptions,
    contracts: Contracts,
    placement: Placement,
    *,
    world: World,
    control: ControlPlane,
    device: torch.device,
    recorder: Recorder,
) -> Edges:
    """Open a rank's edges, together with all other ranks.

    Args:
        options: the run's options.
        contracts: what travels.
        placement: which rank holds which stages.
        world: the ranks.
        control: used to agree on the contracts and to learn of failures.
        device: this rank's device.
        recorder: receives the transfers, and when they were.
    """
    rank, seat = world.rank, placement.seat(world.rank)
    back = contracts.way_back is not None
    before, after = list(_before(placement, seat)), list(_after(placement, seat))
    first, last = seat.block.first, seat.block.last
    incoming = _ends(before, rank, lambda: contracts.forward(first - 1), sending=False)
    outgoing = _ends(after, rank, lambda: contracts.forward(last), sending=True)
    to_previous = _ends(before if back else [], rank, lambda: contracts.back(first), sending=True)
    from_next = _ends(after if back else [], rank, lambda: contracts.back(last + 1), sending=False)
    links = [end.link for end in (*incoming, *outgoing, *to_previous, *from_next)]
    others = [other for other in seat.block.ranks if other != rank]
    names = {link.peer_rank: link.peer_name for link in links}
    names |= {other: f"stage {last} (rank {other})" for other in others}
    control.watch_neighbours(names, stage=last)

    def wait_for(key: str) -> Any:
        return control.wait_for(key, timeout_s=options.start_timeout)

    channels = connect(
        links,
        pairs=placement.pairs(back=back),
        size=world.size,
        rank=rank,
        device=device,
        device_name=describe_device(device),
        edge=options.edge,
        put=control.put,
        wait_for=wait_for,
    )
    by_ranks = {link.ranks: channel for link, channel in zip(links, channels, strict=True)}

    def of(end: _End, window: Window) -> dict[str, Any]:
        return {
            "contract": end.link.contract,
            "channel": by_ranks[end.link.ranks],
            "window": window,
            "peer": end.link.peer_name,
            "check": control.check,
            "timeout_s": edge_patience(options.timeout),
            "waits": partial(control.roll_call.waits, end.link.peer_rank),
            "recorder": recorder,
        }

    def receivers(ends: list[_End], window: Window) -> dict[int, RemoteReceiver]:
        return {end.replica: RemoteReceiver(**of(end, window), deal=end.deal) for end in ends}

    def senders(ends: list[_End], window: Window) -> dict[int, RemoteSender]:
        return {end.replica: RemoteSender(**of(end, window)) for end in ends}

    group = open_group(
        [block.ranks for block in placement.blocks],
        rank=rank,
        wait_for=wait_for,
        sharded=options.replicate == "fsdp",
        stage=last,
        computes_on=device,
        check=control.check,
        waits=partial(control.roll_call.waits, others[0] if others else rank),
        timeout_s=edge_patience(options.timeout),
    )
    counts = [block.replicas for block in placement.blocks]
    replicas_before = counts[seat.index - 1] if before else 1
    replicas_after = counts[seat.index + 1] if after else 1
    return Edges(
        before=_collected(receivers(incoming, options.window), replicas_before, seat),
        after=_dealt(senders(outgoing, options.window), replicas_after),
        to_previous=_dealt(senders(to_previous, WINDOW_BACK), replicas_before),
        from_next=_collected(receivers(from_next, WINDOW_BACK), replicas_after, seat),
        group=group,
    )


Neighbour = tuple[int, int, Deal]
"""A neighbour's rank, its replica, and the batches that pass."""


def _before(placement: Placement, seat: Seat) -> Iterator[Neighbour]:
    if seat.index > 0:
        ranks = placement.blocks[seat.index - 1].ranks
        for i, j, deal in placement.edges(seat.index - 1):
            if j == seat.replica:
                yield ranks[i], i, deal


def _after(placement: Placement, seat: Seat) -> Iterator[Neighbour]:
    if seat.index < len(placement.blocks) - 1:
        ranks = placement.blocks[seat.index + 1].ranks
        for i, j, deal in placement.edges(seat.index):
            if i == seat.replica:
                yield ranks[j], j, deal


def _ends(
    neighbours: list[Neighbour], rank: int, contract: Callable[[], Contract], *, sending: bool
) -> list[_End]:
    return [
        _End(
            link=Link(contract=contract(), own_rank=rank, peer_rank=peer, sending=sending),
            replica=replica,
            deal=deal,
        )
        for peer, replica, deal in neighbours
    ]


def _collected(
    receivers: Mapping[int, RemoteReceiver], replicas: int, seat: Seat
) -> ReceiverBack | None:
    if len(receivers) < 2:
        return next(iter(receivers.values()), None)
    return CollectingReceiver(receivers, replicas=replicas, deal=seat.deal, own=seat.block.first)


def _dealt(senders: Mapping[int, RemoteSender], replicas: int) -> Sender | None:
    if len(senders) < 2:
        return next(iter(senders.values()), None)
    return DealingSender(senders, replicas=replicas)


def edge_patience(timeout_s: float) -> float:
    """Return the seconds that an end of an edge waits, so that ``--timeout`` can name the hung rank."""
    return timeout_s - min(CAUSE_PATIENCE_S, timeout_s / 2)
