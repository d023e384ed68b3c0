"""A request to end that comes twice is one: the second must not interrupt what the first one began."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from pipelocal.errors import Terminated
from pipelocal.system.signals import Wishes, end_on_signals, end_on_signals_again

ENDS = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDS}
    end_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("again", ENDS)
@pytest.mark.parametrize("first", ENDS)
def test_one_request_ends_a_process(first: int, again: int) -> None:
    with pytest.raises(Terminated):
        os.kill(os.getpid(), first)
    os.kill(os.getpid(), again)


@pytest.mark.parametrize("again", ENDS)
def test_nothing_comes_between_the_snapshot_and_its_line(again: int) -> None:
    """The handlers of before raised, so that the line of the snapshot was lost."""
    wishes = Wishes()
    with wishes.heard():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), again)
    os.kill(os.getpid(), again)
    assert wishes.stop


def test_a_stream_that_was_not_stopped_leaves_the_handlers_as_they_were() -> None:
    with Wishes().heard():
        pass
    with pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)


def test_handlers_of_others_come_back() -> None:
    got: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: got.append(number))
    with Wishes().heard():
        os.kill(os.getpid(), signal.SIGTERM)
    assert not got
    os.kill(os.getpid(), signal.SIGTERM)
    assert got == [signal.SIGTERM]


def test_another_run_ends_on_signals_again() -> None:
    """After a request that the program caught, none was heard for the rest of the process."""
    with pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
    end_on_signals_again()
    with pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
