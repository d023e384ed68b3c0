"""When markers stand on the stream: by count, by time, for an evaluation's sake, and by a wish."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipelocal.pipeline.markers import LEAST_S, MANY, WORTH, Markers
from pipelocal.system.signals import Wishes


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_by_count_and_by_time() -> None:
    clock = Clock()
    markers = Markers(every=10, seconds=60.0, wishes=Wishes(), clock=clock)
    due = []
    for done in range(1, 41):
        clock.now += 4.0
        if markers.due(done):
            due.append(done)
    assert due == [10, 20, 30, 40]
    clock.now += 60.0
    assert markers.due(41)
    assert not markers.due(42)


@pytest.mark.parametrize("price", [0.0, 2.0, float("inf")])
def test_behind_an_evaluation_where_it_is_worth_it(price: float) -> None:
    """A hundredth of the time at most."""
    clock = Clock()
    markers = Markers(every=None, seconds=1e9, wishes=Wishes(), price=lambda: price, clock=clock)
    taken = 0
    for _ in range(10_000):
        clock.now += 1.0
        taken += markers.due_after_evaluation()
    assert taken == int(10_000 / max(LEAST_S, WORTH * price))


def test_a_wish_in_an_evaluation_is_kept_for_the_next_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wishes = Wishes()
    markers = Markers(every=None, seconds=1e9, wishes=wishes)
    wishes._on_snapshot(0, None)
    assert not markers.stopping()
    assert markers.due(1)
    assert not markers.due(2)
    wishes.stop = True
    assert markers.stopping()


def test_several_sources_agree_and_not_at_each_batch() -> None:
    """By numbers that only one of them knows; a wish is heard within about a fifth of a second."""
    clock, calls = Clock(), []
    wishes = Wishes()

    def with_another(other: int) -> Callable[[int], int]:
        def greatest(value: int) -> int:
            calls.append(value)
            return max(value, other)

        return greatest

    markers = Markers(every=100, seconds=1e9, wishes=wishes, agree=with_another(3), clock=clock)
    due = []
    for done in range(1, 1001):
        clock.now += 0.01
        if done == 501:
            wishes._on_snapshot(0, None)
        if markers.due(done):
            due.append(done)
    extra = [done for done in due if done % 100]
    assert [done for done in due if done % 100 == 0] == list(range(100, 1001, 100))
    assert len(extra) == 1
    assert 501 <= extra[0] <= 501 + 40
    assert len(calls) < 100
    stopping = Markers(
        every=None, seconds=1e9, wishes=Wishes(), agree=with_another(2 * MANY + 1), clock=clock
    )
    assert stopping.due(1)
    assert stopping.stop
