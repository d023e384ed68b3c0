"""Calls on a thread of their own: in turn, and without an end that anybody waits for."""

import threading

import pytest

from pipelocal.errors import Interrupted
from pipelocal.ranks.breakable import InTurn
from tests.launching import PATIENCE_S


def go_on() -> None:
    pass


def test_calls_run_in_the_order_in_which_they_are_begun() -> None:
    line, may, told = InTurn(), threading.Event(), list[int]()
    first = line.begin(lambda: may.wait(PATIENCE_S))
    rest = [line.begin(lambda number=number: told.append(number)) for number in range(20)]  # type: ignore[misc]
    assert not told
    may.set()
    assert first.wait(check=go_on, timeout_s=PATIENCE_S)
    rest[-1].wait(check=go_on, timeout_s=PATIENCE_S)
    assert told == list(range(20))


def test_what_a_call_raises_is_raised_where_it_is_waited_for() -> None:
    line = InTurn()
    failing, next_one = line.begin(lambda: 1 // 0), line.begin(lambda: 5)
    with pytest.raises(ZeroDivisionError):
        failing.wait(check=go_on, timeout_s=PATIENCE_S)
    assert next_one.wait(check=go_on, timeout_s=PATIENCE_S) == 5


def test_a_call_that_never_ends_is_left_where_another_rank_fails() -> None:
    line, never = InTurn(), threading.Event()
    begun = line.begin(never.wait)

    def fail() -> None:
        raise Interrupted("stage 2 has failed")

    with pytest.raises(Interrupted):
        begun.wait(check=fail, timeout_s=PATIENCE_S)
    with pytest.raises(TimeoutError):
        begun.wait(check=go_on, timeout_s=0.2)
    never.set()
