"""Tasks with numbers or sets of labels: over uneven batches the same figures as scikit-learn of all rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import (
    f1_score,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)
from torch import Tensor

from pipelocal.data import DataInfo
from pipelocal.errors import DataError, UserError
from pipelocal.tasks import MultiLabel, Regression
from pipelocal.tasks.regression import LOSSES
from tests.tasks.figures import drawn, gradient, labels, over

NUMBERS = drawn(20, 3, seed=1) * torch.tensor([1.0, 10.0, 0.1]) + 5
ANSWERS = NUMBERS + drawn(20, 3, seed=2)


@pytest.mark.parametrize("loss", LOSSES)
def test_regression(loss: str) -> None:
    reading = over(Regression(loss=loss), ANSWERS, NUMBERS)
    assert reading.loss == pytest.approx(LOSSES[loss](ANSWERS, NUMBERS).item())
    expected = {
        "r2": r2_score(NUMBERS, ANSWERS),
        "mae": mean_absolute_error(NUMBERS, ANSWERS),
        "rmse": math.sqrt((ANSWERS - NUMBERS).square().mean()),
    }
    assert reading.metrics == pytest.approx(expected)


def test_regression_of_one_number() -> None:
    """Targets [B] and outputs [B, 1] are compared row by row; broadcasting would make [B, B] of them."""
    answers, numbers = ANSWERS[:, :1], NUMBERS[:, 0]
    reading = over(Regression(), answers, numbers)
    assert reading.loss == pytest.approx(F.mse_loss(answers[:, 0], numbers).item())
    rmse = root_mean_squared_error(numbers, answers[:, 0])
    assert reading.metrics["rmse"] == pytest.approx(rmse)
    assert reading.metrics["r2"] == pytest.approx(r2_score(numbers, answers))


def test_regression_of_maps() -> None:
    """R2 is of each channel, over all its pixels."""
    maps, answers = drawn(20, 2, 3, 4), drawn(20, 2, 3, 4, seed=5)
    reading = over(Regression(), answers, maps)
    flat, answered = (m.transpose(0, 1).flatten(1).T for m in (maps, answers))
    assert reading.metrics["r2"] == pytest.approx(r2_score(flat, answered))
    assert Regression().width((2, 3, 4)) == 2


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_targets_that_are_all_the_same_have_no_r2(value: float) -> None:
    constant = torch.full((20, 1), value, dtype=torch.float64)
    assert over(Regression(), drawn(20, 1), constant).metrics["r2"] is None
    beside = torch.cat([constant, NUMBERS[:, :1]], 1)
    answers = torch.cat([drawn(20, 1), ANSWERS[:, :1]], 1)
    expected = r2_score(NUMBERS[:, :1], ANSWERS[:, :1])
    assert over(Regression(), answers, beside).metrics["r2"] == pytest.approx(expected)


def test_regression_with_an_own_loss() -> None:
    def own(output: Tensor, target: Tensor) -> Tensor:
        assert output.shape == target.shape
        return (output - target).abs().pow(3).mean()

    reading = over(Regression(loss=own), ANSWERS, NUMBERS)
    assert reading.loss == pytest.approx((ANSWERS - NUMBERS).abs().pow(3).mean().item())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_multi_label(dtype: torch.dtype) -> None:
    logits, target = drawn(20, 4), labels(2, 20, 4)
    target[:, 3], logits[:, 3] = 0, -1
    reading = over(MultiLabel(), logits, target.to(dtype))
    expected = F.binary_cross_entropy_with_logits(logits, target.double())
    assert reading.loss == pytest.approx(expected.item())
    scores = {
        name: f1_score(target, logits > 0, average=average, zero_division=0)
        for name, average in (("f1", "micro"), ("macro_f1", "macro"))
    }
    assert reading.metrics == pytest.approx(scores)


def test_multi_label_of_which_some_are_not_known() -> None:
    logits, target = drawn(20, 4), labels(2, 20, 4)
    target[labels(3, 20, 4, seed=3) == 0] = -1
    known = target != -1
    reading = over(MultiLabel(ignore_index=-1), logits, target)
    expected = F.binary_cross_entropy_with_logits(logits[known], target[known].double())
    assert reading.loss == pytest.approx(expected.item())
    score = f1_score(target[known], logits[known] > 0)
    assert reading.metrics["f1"] == pytest.approx(score)
    nothing, task = torch.full((20, 4), -1), MultiLabel(ignore_index=-1)
    assert not gradient(task, logits, nothing).any()
    reading = over(task, logits, nothing)
    assert (reading.loss, set(reading.metrics.values())) == (None, {None})


def test_votes() -> None:
    output = drawn(3, 4).float()
    task = MultiLabel()
    assert torch.allclose(task.from_votes(task.votes(output)), output, atol=1e-5)
    assert torch.isfinite(task.from_votes(torch.tensor([0.0, 1.0]))).all()
    assert torch.equal(Regression().votes(output), output)


def _info(*target_shape: int) -> DataInfo:
    return DataInfo(
        name="own",
        sample_shape=(3,),
        classes=None,
        target_shape=target_shape,
        target_dtype=torch.float32,
    )


def test_the_shape_of_an_output() -> None:
    assert Regression().output_shape(_info(), None) == (1,)
    assert Regression(outputs=3).output_shape(_info(3), (9,)) == (3,)
    assert Regression(outputs=2).output_shape(_info(2, 4, 4), None) == (2, 4, 4)
    assert MultiLabel().output_shape(_info(4), None) == (4,)


@pytest.mark.parametrize(
    ("task", "target", "said"),
    [
        (Regression(), torch.zeros(4, 3, dtype=torch.int64), "targets are torch.int64"),
        (Regression(), torch.zeros(4), r"targets of shape \[4\]"),
        (Regression(), torch.full((4, 3), math.nan), "targets hold NaN"),
        (MultiLabel(), torch.tensor([[0, 1, 2]]), "a target of 2, but multi-label wants 0 or 1"),
        (MultiLabel(), torch.tensor([[0, math.nan, 1]]), "a target of nan"),
        (MultiLabel(), torch.tensor([0, 1]), r"targets of shape \[2\]"),
        (MultiLabel(ignore_index=-1), torch.tensor([[-2.0, 1, -1]]), "a target of -2"),
    ],
)
def test_bad_targets(task: Regression, target: Tensor, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        task.check_target(target, (3,))
    assert "\n" not in str(error.value)


def test_good_targets() -> None:
    Regression().check_target(torch.zeros(4), (1,))
    Regression().check_target(torch.zeros(4, 3), (3,))
    MultiLabel(ignore_index=-1).check_target(torch.tensor([[-1.0, 1, 0]]), (3,))
    MultiLabel().check_target(torch.tensor([[True, False, False]]), (3,))


def test_bad_arguments() -> None:
    for make, said in (
        (lambda: Regression(outputs=0), "outputs=0: give at least one"),
        (lambda: Regression(loss="mae"), "loss 'mae': regression knows mse, l1, huber"),
        (lambda: Regression(outputs=2).output_shape(_info(3), None), "outputs=2, but the data"),
        (
            lambda: Regression().output_shape(replace(_info(3), target_dtype=torch.int64), None),
            "targets are torch.int64, but regression wants",
        ),
        (lambda: MultiLabel(ignore_index=0), "ignore_index=0: 0 and 1 say"),
        (lambda: MultiLabel(labels=3).output_shape(_info(4), None), r"\[B, 3\]"),
        (lambda: MultiLabel().output_shape(_info(), None), "a 0 or 1 for every label"),
    ):
        with pytest.raises(UserError, match=said):
            make()
