"""Means over batches of different sizes, and the first batch that went wrong."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from pipelocal.errors import UserError
from pipelocal.objective.residual import Residual
from pipelocal.pipeline.tally import Reading, Tally
from pipelocal.tasks import Classification, Loss, NextToken, Segmentation

CPU = torch.device("cpu")


def _tally(windows: int = 1) -> Tally:
    return Tally(CPU, task=Classification(), windows=windows)


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
        loss=Loss(torch.tensor(loss), rows),
        sums={"predictions": rows, "accuracy": torch.tensor(correct)},
        residual=None if distance is None else _residual(distance),
    )


def _residual(distance: float) -> Residual:
    value = torch.tensor(distance)
    return Residual(distance=value, cosine=1 - value, relative=2 * value, cap=value / 2)


def test_means_are_over_rows_and_not_over_batches() -> None:
    tally = _tally()
    _add(tally, 0, 1.0, rows=6, correct=3, distance=0.5)
    _add(tally, 1, 4.0, rows=2, correct=2, distance=1.5)
    assert tally.rows == [8]
    reading = tally.read_and_reset()
    assert reading == Reading(
        rows=8,
        loss=1.75,
        metrics={"accuracy": 0.625},
        reconciliation=0.75,
        cosine=0.25,
        residual=1.5,
        cap=0.375,
    )


def test_accuracy_is_over_predictions() -> None:
    """Sequences have many predictions a row."""
    tally = _tally()
    sums: dict[str, Tensor | float] = {"predictions": 12, "accuracy": torch.tensor(9)}
    tally.add(batch=0, rows=2, loss=Loss(torch.tensor(1.0), 12), sums=sums)
    assert tally.read_and_reset().metrics == {"accuracy": 0.75}


def test_the_loss_is_a_mean_over_what_counts() -> None:
    """Of batches of which little counts, and of one of which nothing does."""
    tally = Tally(CPU, task=NextToken())
    for batch, (mean, tokens) in enumerate([(1.0, 30), (5.0, 10), (0.0, 0)]):
        counted = torch.tensor(tokens)
        sums = {"predictions": counted, "accuracy": counted // 2}
        tally.add(batch=batch, rows=4, loss=Loss(torch.tensor(mean), counted), sums=sums)
    reading = tally.read_and_reset()
    assert (reading.rows, reading.loss) == (12, 2.0)
    assert reading.metrics == {"accuracy": 0.5, "perplexity": math.exp(2)}


def test_batches_of_which_nothing_counts_have_no_figures() -> None:
    tally = Tally(CPU, task=NextToken())
    sums = {"predictions": torch.tensor(0), "accuracy": torch.tensor(0)}
    tally.add(batch=0, rows=4, loss=Loss(torch.tensor(0.0), torch.tensor(0)), sums=sums)
    reading = tally.read_and_reset()
    assert (reading.rows, reading.loss) == (4, None)
    assert reading.metrics == {"accuracy": None, "perplexity": None}


def test_sums_of_any_shape() -> None:
    tally = Tally(CPU, task=Segmentation(), windows=2)
    one = torch.tensor([[3, 1], [0, 4]])
    for batch in range(2):
        loss = Loss(torch.tensor(1.0), 8)
        tally.add(batch=batch, rows=1, loss=loss, sums={"confusion": one})
    expected = {"mean_iou": (3 / 4 + 4 / 5) / 2, "pixel_accuracy": 7 / 8}
    for window in range(2):
        assert tally.read_and_reset(window).metrics == pytest.approx(expected)


@pytest.mark.parametrize("knows", [False, True])
def test_a_snapshot_in_the_middle(knows: bool) -> None:
    """Whether or not the shapes of the sums are known before the first batch; and with other replicas."""
    shapes = {"predictions": (), "accuracy": ()} if knows else None
    whole, first = _tally(2), _tally(2)
    for tally in (whole, first):
        _add(tally, 0, 1.0, rows=6, correct=3, distance=0.5)
    state = first.state_dict()
    second, empty = (Tally(CPU, task=Classification(), windows=2, shapes=shapes) for _ in "12")
    second.load_state_dict(state)
    for tally in (whole, second):
        _add(tally, 1, 4.0, rows=2, correct=2, distance=None)
    assert [second.read_and_reset(w) for w in (0, 1)] == [whole.read_and_reset(w) for w in (0, 1)]
    empty.load_state_dict(state, replica=1, replicas=2)
    assert empty.read_and_reset().rows == 0


def test_a_snapshot_of_an_earlier_version() -> None:
    """Whose loss was weighted by rows: ``correct, loss, residual..., further..., figures..., counts``."""
    task = Classification(further_metrics={"margin": lambda output, _: output.sum()})
    tally = Tally(CPU, task=task, windows=2, figures=("error",))
    window = [9.0, 12.0, 4.0, 5.0, 6.0, 24.0, 40.0, 8.0, 48.0, 4.0]
    tally.load_state_dict(torch.tensor([[window, window]], dtype=torch.float64))
    for number in range(2):
        reading = tally.read_and_reset(number)
        assert reading == Reading(
            rows=8,
            loss=1.5,
            metrics={"accuracy": 9 / 48, "margin": 0.5},
            reconciliation=1.0,
            cosine=1.25,
            residual=1.5,
            figures={"error": 5.0},
        )


def test_sums_of_a_version_that_knew_no_cap() -> None:
    """They go on, and the cap is unknown until the next record."""
    tally = _tally()
    _add(tally, 0, 1.0, rows=6, correct=3, distance=0.5)
    state = tally.state_dict()
    assert state is not None
    sums, cap = (
        state["sums"],
        2 + 2 + 3,
    )  # behind loss, weight, two scalars, and the residual before it
    state["sums"] = torch.cat([sums[..., :cap], sums[..., cap + 1 :]], dim=-1)
    later = _tally()
    later.load_state_dict(state)
    _add(later, 1, 4.0, rows=2, correct=2, distance=1.5)
    reading = later.read_and_reset()
    assert (reading.rows, reading.loss, reading.reconciliation) == (8, 1.75, 0.75)
    assert (reading.residual, reading.cap) == (1.5, None)
    _add(later, 2, 4.0, distance=1.0)
    assert later.read_and_reset().cap == 0.5


def test_a_reading_of_an_earlier_version() -> None:
    old = {"rows": 4, "loss": 1.0, "accuracy": 0.5, "reconciliation": None, "cosine": None}
    reading = Reading.of_state({**old, "residual": None, "further": {"error": 2.0}})
    assert (reading.metrics, reading.figures) == ({"accuracy": 0.5}, {"error": 2.0})


def test_nothing_seen() -> None:
    assert _tally().read_and_reset() == Reading(rows=0, loss=None, metrics={"accuracy": None})


def test_no_distance_where_nothing_is_reconciled() -> None:
    tally = _tally()
    _add(tally, 0, 1.0, distance=None)
    assert tally.read_and_reset().reconciliation is None


def test_residuals_are_means_over_the_rows_that_were_reconciled() -> None:
    tally = _tally()
    _add(tally, 0, 1.0, rows=6, distance=0.5)
    _add(tally, 1, 1.0, rows=100, distance=None)
    _add(tally, 2, 1.0, rows=2, distance=1.5)
    assert tally.read_and_reset().reconciliation == 0.75


def test_windows_are_reset_one_by_one() -> None:
    tally = _tally(2)
    _add(tally, 0, 1.0, rows=1, distance=0.5)
    assert tally.read_and_reset(0).loss == 1.0
    _add(tally, 1, 4.0, rows=2, distance=None)
    first, second = tally.read_and_reset(0), tally.read_and_reset(1)
    assert (first.rows, first.loss, first.reconciliation) == (2, 4.0, None)
    assert (second.rows, second.loss, second.reconciliation) == (3, 3.0, 0.5)
    assert tally.rows == [0, 0]


def test_reset() -> None:
    tally = _tally()
    _add(tally, 0, 100.0, distance=100.0)
    tally.read_and_reset()
    assert tally.rows == [0]
    assert tally.read_and_reset().loss is None
    _add(tally, 1, 2.0, rows=4, correct=2, distance=0.25)
    assert tally.read_and_reset() == Reading(
        rows=4,
        loss=2.0,
        metrics={"accuracy": 0.5},
        reconciliation=0.25,
        cosine=0.75,
        residual=0.5,
        cap=0.125,
    )


def test_many_small_losses_do_not_drown() -> None:
    """Sums in float64: in float32 the small ones would vanish beside the large one."""
    tally = _tally()
    _add(tally, 0, 1e8, rows=1, distance=None)
    for batch in range(100):
        _add(tally, batch, 1.0, rows=1, distance=None)
    loss = tally.read_and_reset().loss
    assert loss is not None
    assert loss * 101 == pytest.approx(1e8 + 100, abs=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "distance"])
def test_first_bad_batch(bad: float, where: str) -> None:
    tally = _tally()
    _add(tally, 7, 1.0, distance=0.5)
    assert tally.first_bad_batch() is None
    for batch in (8, 9):
        values = (bad, 0.5) if where == "loss" else (1.0, bad)
        _add(tally, batch, values[0], distance=values[1])
    _add(tally, 10, 1.0, distance=0.5)
    assert tally.first_bad_batch() == 8


def test_batch_zero_may_be_the_bad_one() -> None:
    tally = _tally()
    _add(tally, 0, math.nan, distance=None)
    _add(tally, 1, math.nan, distance=None)
    assert tally.first_bad_batch() == 0


def test_a_replica_without_a_batch_reads_what_the_others_saw() -> None:
    """It knows the shapes of the sums beforehand, for what is gathered has one shape."""
    shapes = {"confusion": (2, 2)}
    seen, empty = (Tally(CPU, task=Segmentation(), shapes=shapes) for _ in "12")
    confusion = torch.tensor([[3, 1], [0, 4]])
    seen.add(batch=0, rows=1, loss=Loss(torch.tensor(1.0), 8), sums={"confusion": confusion})
    states = [tally.state_dict() for tally in (seen, empty)]
    assert states[1] is None
    assert states[0] is not None
    gathered = torch.stack([states[0]["sums"][0], torch.zeros(1, 12, dtype=torch.float64)])
    other = Tally(CPU, task=Segmentation(), shapes=shapes, each=lambda _: gathered[:, 0])
    reading = other.read_and_reset()
    assert (reading.rows, reading.loss) == (1, 1.0)
    assert reading.metrics["pixel_accuracy"] == 7 / 8


def test_figures_other_than_announced() -> None:
    class Odd(Classification):
        metrics = ("accuracy", "margin")

        def figures(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
            return {"accuracy": float(sums["accuracy"])}

    tally = Tally(CPU, task=Odd())
    _add(tally, 0, 1.0, distance=None)
    with pytest.raises(UserError, match=r"Odd gives the figures \['accuracy'\], and announces"):
        tally.read_and_reset()
