"""The rule by which events are dealt to replicas, and the ends that keep to it."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from math import lcm

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelocal.errors import StageError
from pipelocal.pipeline.placement import place
from pipelocal.transport.deal import Deal
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.inprocess import HandedBatch
from pipelocal.transport.replicated import CollectingReceiver

COUNTS = st.integers(1, 6)


@given(COUNTS, st.integers(-1, 50))
def test_the_next_one(every: int, number: int) -> None:
    for first in range(every):
        deal = Deal(every=every, first=first)
        later = range(number + 1, number + 1 + every)
        assert deal.after(number) == next(n for n in later if deal.has(n))


@given(COUNTS, COUNTS)
def test_every_event_has_one_edge(senders: int, receivers: int) -> None:
    """And no edge is there for nothing."""
    deals = {
        (i, j): Deal(every=senders, first=i).of_edge(Deal(every=receivers, first=j))
        for i in range(senders)
        for j in range(receivers)
    }
    numbers = range(2 * lcm(senders, receivers))
    for number in numbers:
        of_it = [ends for ends, deal in deals.items() if deal is not None and deal.has(number)]
        assert of_it == [(number % senders, number % receivers)]
    for deal in deals.values():
        assert deal is None or any(deal.has(number) for number in numbers)


class Canned:
    """A receiver whose events are there already."""

    received_bytes, waited_s = 8, 0.5

    def __init__(self, headers: list[Header]) -> None:
        self.events = deque(HandedBatch(header) for header in headers)

    def trouble(self) -> None:
        return None

    def receive(self) -> HandedBatch:
        return self.events.popleft()

    def receive_number(self, number: int) -> HandedBatch:
        batch = self.receive()
        assert batch.header.number == number
        return batch

    def receive_end(self, number: int) -> None:
        self.receive_number(number)

    def close(self) -> None:
        self.events.clear()


def header(kind: Kind, number: int) -> Header:
    return Header(kind=kind, number=number, rows=1, epoch=0, step=0)


@given(COUNTS, COUNTS, st.lists(st.sampled_from("T#"), max_size=30))
def test_every_replica_meets_its_events_in_order(senders: int, receivers: int, kinds: str) -> None:
    """Whatever the order of batches (T) and markers (#), which come over all edges and are met once."""
    names = {"T": Kind.TRAIN, "#": Kind.EVALUATED}
    stream = [header(names[kind], number) for number, kind in enumerate(kinds)]
    stream.append(header(Kind.END, len(kinds)))
    for j in range(receivers):
        own = Deal(every=receivers, first=j)
        ends = {}
        for i in range(senders):
            deal = Deal(every=senders, first=i).of_edge(own)
            if deal is not None:
                ends[i] = Canned([h for h in stream if not h.kind.dealt or deal.has(h.number)])
        receiver = CollectingReceiver(ends, replicas=senders, deal=own, own=2)
        met: list[Header] = []
        while not met or met[-1].kind != Kind.END:
            met.append(receiver.receive().header)
        assert met == [h for h in stream if not h.kind.dealt or own.has(h.number)]
        assert not any(end.events for end in ends.values())
        assert receiver.received_bytes == 8 * len(ends)


def test_markers_that_differ_are_refused() -> None:
    one, other = header(Kind.EVALUATED, 0), replace(header(Kind.EVALUATED, 0), epoch=1)
    ends = {0: Canned([one]), 1: Canned([other])}
    receiver = CollectingReceiver(ends, replicas=2, deal=Deal(), own=3)
    with pytest.raises(StageError, match="stage 3: the replicas of stage 2 disagree"):
        receiver.receive()


@given(st.lists(COUNTS, min_size=1, max_size=5))
def test_edges_of_uneven_replicas(replicas: list[int]) -> None:
    """Every replica has one edge in at least and one out, and no edge goes back."""
    ranks = sum(replicas)
    placement = place(len(replicas), ranks, replicas)
    pairs = placement.pairs()
    assert len(set(pairs)) == len(pairs)
    assert all(source < target for source, target in pairs)
    if ranks > 1:
        seats = [placement.seat(rank) for rank in range(ranks)]
        assert [seat.block.ranks[seat.replica] for seat in seats] == list(range(ranks))
        for rank, seat in enumerate(seats):
            first, last = seat.index == 0, seat.index == len(placement.blocks) - 1
            assert first or any(target == rank for _, target in pairs)
            assert last or any(source == rank for source, _ in pairs)
