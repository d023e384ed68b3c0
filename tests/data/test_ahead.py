"""Batches made ahead by a thread: bounded, in order, with its errors, and it ends."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest
import torch

from pipelocal.data.ahead import DEPTH, prepared_ahead
from pipelocal.data.batches import Batch
from tests.launching import until


def counted(made: list[int], until_error: int = 10**9) -> Generator[Batch | None]:
    for number in range(100):
        if number == until_error:
            raise ValueError("a bad sample")
        made.append(number)
        yield None if number % 3 == 2 else _batch(number)


def _batch(number: int) -> Batch:
    value = torch.tensor([number])
    return Batch(value, value, value)


def test_order_and_bound() -> None:
    made: list[int] = []
    batches = prepared_ahead(counted(made))
    first = next(batches)
    assert first is not None
    assert first.x.item() == 0
    until(lambda: len(made) == DEPTH + 2)  # taken, waiting, and in the thread's hand
    rest = list(batches)
    assert len(made) == 100
    assert [None if b is None else int(b.x) for b in rest] == [
        None if n % 3 == 2 else n for n in range(1, 100)
    ]


def test_an_error_comes_in_its_place() -> None:
    batches = prepared_ahead(counted([], 2))
    assert [next(batches) is not None for _ in range(2)] == [True, True]
    with pytest.raises(ValueError, match="a bad sample"):
        next(batches)


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    made: list[int] = []
    batches = prepared_ahead(counted(made))
    next(batches)
    batches.close()
    assert threading.active_count() == before
    assert len(made) < 10
