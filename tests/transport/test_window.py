"""How many batches the window ``auto`` keeps in flight: what a link needs, and no more than that."""

from dataclasses import dataclass

import pytest

from pipelocal.transport.window import MOST_SLOTS, RING_SLOTS, ROUND, Growth, most_slots
from tests.transport.contracts import plain_contract


@dataclass
class Edge:
    """An edge in its long run: what it takes, where nothing takes any time but what is said."""

    sender_s: float
    receiver_s: float
    round_s: float = 0.0
    """From when a slot is free until a batch has come into it, without what the receiver computes."""
    transfer_s: float = 0.0
    room: int = 1000
    now: float = 0.0

    def run(self, batches: int, most: int = MOST_SLOTS) -> list[int]:
        """Slots after every round of batches."""
        growth = Growth(RING_SLOTS, most, lambda: self.room, lambda: self.now)
        slots = []
        for _ in range(batches):
            cycle_s = (self.round_s + self.receiver_s) / growth.slots
            batch_s = max(cycle_s, self.transfer_s, self.sender_s, self.receiver_s)
            self.now += batch_s
            growth.add(sender_s=batch_s - self.sender_s, receiver_s=batch_s - self.receiver_s)
            slots.append(growth.slots)
        return slots


def test_a_long_link_gets_the_slots_that_fill_its_round() -> None:
    """A round trip of 100 ms holds five steps of 20 ms, one is in use, and one is spare."""
    slots = Edge(sender_s=0.02, receiver_s=0.02, round_s=0.1).run(100)
    assert slots[-1] == 7
    assert slots.index(7) < 3 * ROUND, "by one decision"


@pytest.mark.parametrize(("sender_s", "receiver_s"), [(0.02, 0.1), (0.1, 0.02), (0.1, 0.1)])
def test_a_slow_stage_gets_no_slots(sender_s: float, receiver_s: float) -> None:
    assert Edge(sender_s=sender_s, receiver_s=receiver_s, round_s=0.05).run(200)[-1] == RING_SLOTS


def test_a_narrow_link_gets_slots_once() -> None:
    """Both ends wait, but for bandwidth: it is tried, and does not help."""
    slots = Edge(sender_s=0.02, receiver_s=0.02, round_s=0.1, transfer_s=0.1).run(500)
    assert slots[-1] <= 12
    assert slots[50] == slots[-1]


def test_slots_stay_within_bounds_and_memory() -> None:
    edge = Edge(sender_s=1e-4, receiver_s=1e-4, round_s=1.0)
    assert edge.run(500)[-1] == MOST_SLOTS
    assert edge.run(500, most=5)[-1] == 5
    edge.room = 0
    assert edge.run(500)[-1] == RING_SLOTS


def test_an_evaluation_in_between_is_no_wait_for_the_link() -> None:
    now = 0.0
    growth = Growth(RING_SLOTS, MOST_SLOTS, lambda: 1000, lambda: now)
    for number in range(200):
        now += 0.02
        if number % 10 == 0:
            now += 10
            growth.interrupt()
        growth.add(sender_s=5.0 if number % 10 == 0 else 0.0, receiver_s=0.0)
    assert growth.slots == RING_SLOTS


def test_a_given_window_stays_as_it_is() -> None:
    contract = plain_contract(source=1, feature=(1,), label=(), classes=2, max_rows=8)
    assert most_slots(contract, 1) == 2
    assert most_slots(contract, 5) == 5
    assert most_slots(contract, "auto") == MOST_SLOTS
    wide = plain_contract(source=1, feature=(2**20,), label=(), classes=2, max_rows=8)
    assert most_slots(wide, "auto") == 7, "of 32 MiB each, and the labels"
