"""Means over batches of different sizes, and the first batch that went wrong."""

import math

import pytest
import torch

from pipelocal.objective.residual import Residual
from pipelocal.pipeline.tally import Reading, Tally

CPU = torch.device("cpu")


def _add(
    tally: Tally,
    batch: int,
    loss: float,
    *,
    rows: int = 4,
    correct: int = 1,
    distance: float | None,
) -> None:
    tally.add(
        batch=batch,
        rows=rows,
        loss=torch.tensor(loss),
        correct=torch.tensor(correct),
        predictions=rows,
        residual=None if distance is None else _residual(distance),
    )


def _residual(distance: float) -> Residual:
    value = torch.tensor(distance)
    return Residual(distance=value, cosine=1 - value, relative=2 * value)


def test_means_are_over_rows_and_not_over_batches() -> None:
    tally = Tally(CPU)
    _add(tally, 0, 1.0, rows=6, correct=3, distance=0.5)
    _add(tally, 1, 4.0, rows=2, correct=2, distance=1.5)
    assert tally.rows == [8]
    reading = tally.read_and_reset()
    assert reading == Reading(
        rows=8, loss=1.75, accuracy=0.625, reconciliation=0.75, cosine=0.25, residual=1.5
    )


def test_accuracy_is_over_predictions() -> None:
    """Sequences have many predictions a row."""
    tally = Tally(CPU)
    tally.add(batch=0, rows=2, loss=torch.tensor(1.0), correct=torch.tensor(9), predictions=12)
    assert tally.read_and_reset().accuracy == 0.75


def test_nothing_seen() -> None:
    assert Tally(CPU).read_and_reset() == Reading(
        rows=0, loss=None, accuracy=None, reconciliation=None, cosine=None, residual=None
    )


def test_no_distance_where_nothing_is_reconciled() -> None:
    tally = Tally(CPU)
    _add(tally, 0, 1.0, distance=None)
    assert tally.read_and_reset().reconciliation is None


def test_residuals_are_means_over_the_rows_that_were_reconciled() -> None:
    tally = Tally(CPU)
    _add(tally, 0, 1.0, rows=6, distance=0.5)
    _add(tally, 1, 1.0, rows=100, distance=None)
    _add(tally, 2, 1.0, rows=2, distance=1.5)
    assert tally.read_and_reset().reconciliation == 0.75


def test_windows_are_reset_one_by_one() -> None:
    tally = Tally(CPU, windows=2)
    _add(tally, 0, 1.0, rows=1, distance=0.5)
    assert tally.read_and_reset(0).loss == 1.0
    _add(tally, 1, 4.0, rows=2, distance=None)
    first, second = tally.read_and_reset(0), tally.read_and_reset(1)
    assert (first.rows, first.loss, first.reconciliation) == (2, 4.0, None)
    assert (second.rows, second.loss, second.reconciliation) == (3, 3.0, 0.5)
    assert tally.rows == [0, 0]


def test_reset() -> None:
    tally = Tally(CPU)
    _add(tally, 0, 100.0, distance=100.0)
    tally.read_and_reset()
    assert tally.rows == [0]
    assert tally.read_and_reset().loss is None
    _add(tally, 1, 2.0, rows=4, correct=2, distance=0.25)
    assert tally.read_and_reset() == Reading(
        rows=4, loss=2.0, accuracy=0.5, reconciliation=0.25, cosine=0.75, residual=0.5
    )


def test_many_small_losses_do_not_drown() -> None:
    """Sums in float64: in float32 the small ones would vanish beside the large one."""
    tally = Tally(CPU)
    _add(tally, 0, 1e8, rows=1, distance=None)
    for batch in range(100):
        _add(tally, batch, 1.0, rows=1, distance=None)
    loss = tally.read_and_reset().loss
    assert loss is not None
    assert loss * 101 == pytest.approx(1e8 + 100, abs=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "distance"])
def test_first_bad_batch(bad: float, where: str) -> None:
    tally = Tally(CPU)
    _add(tally, 7, 1.0, distance=0.5)
    assert tally.first_bad_batch() is None
    for batch in (8, 9):
        values = (bad, 0.5) if where == "loss" else (1.0, bad)
        _add(tally, batch, values[0], distance=values[1])
    _add(tally, 10, 1.0, distance=0.5)
    assert tally.first_bad_batch() == 8


def test_batch_zero_may_be_the_bad_one() -> None:
    tally = Tally(CPU)
    _add(tally, 0, math.nan, distance=None)
    _add(tally, 1, math.nan, distance=None)
    assert tally.first_bad_batch() == 0
