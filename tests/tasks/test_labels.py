"""Tasks with class labels: figures over uneven batches equal those of all rows at once, by plain torch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import jaccard_score, top_k_accuracy_score
from torch import Tensor

from pipelocal.data import DataInfo
from pipelocal.errors import DataError, UserError
from pipelocal.tasks import Classification, Loss, NextToken, Segmentation
from tests.tasks.figures import drawn, gradient, labels, over

WEIGHTS = (0.5, 1.0, 2.0, 0.0, 3.0)
LOGITS, LABELS = drawn(20, 5), labels(5, 20)


def _ignoring(target: Tensor, value: int) -> Tensor:
    """Return the labels with whole rows, and some single places, that do not count."""
    ignored = target.clone()
    ignored[3:8] = value
    ignored.view(-1)[::7] = value
    return ignored


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("ignore_index", [None, -100, 2])
def test_classification(
    smoothing: float, weights: tuple[float, ...] | None, ignore_index: int | None
) -> None:
    target = LABELS if ignore_index is None else _ignoring(LABELS, ignore_index)
    task = Classification(
        class_weights=weights, ignore_index=ignore_index, label_smoothing=smoothing
    )
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    index = -100 if ignore_index is None else ignore_index
    expected = F.cross_entropy(
        LOGITS, target, weight, ignore_index=index, label_smoothing=smoothing
    )
    reading = over(task, LOGITS, target)
    assert reading.loss == pytest.approx(expected.item(), rel=1e-12)
    counted = target != index
    right = (LOGITS.argmax(1) == target)[counted]
    assert reading.metrics == {"accuracy": right.double().mean().item()}


def test_plain_classification_has_the_bits_of_plain_torch() -> None:
    logits, target = LOGITS.float(), LABELS
    for task in (Classification(), Classification(label_smoothing=0.1)):
        expected = F.cross_entropy(logits, target, label_smoothing=task.label_smoothing)
        assert torch.equal(task.loss(logits, target).mean, expected)


def test_classification_of_every_token() -> None:
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    reading = over(Classification(), logits, torch.tensor([[1, 1], [1, 0]]), (0, 1, 2))
    assert reading.metrics == {"accuracy": 0.5}


def test_top_k() -> None:
    reading = over(Classification(top_k=3), LOGITS, LABELS)
    assert set(reading.metrics) == {"accuracy", "top3"}
    expected = top_k_accuracy_score(LABELS, LOGITS, k=3, labels=range(5))
    assert reading.metrics["top3"] == pytest.approx(expected)
    ignoring = over(Classification(top_k=5, ignore_index=1), LOGITS, LABELS)
    assert ignoring.metrics["top5"] == 1


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_soft_targets(weights: tuple[float, ...] | None) -> None:
    soft = 0.7 * F.one_hot(LABELS, 5) + 0.3 * F.one_hot(labels(5, 20, seed=2), 5)
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    reading = over(Classification(class_weights=weights, ignore_index=2), LOGITS, soft)
    assert reading.loss == pytest.approx(F.cross_entropy(LOGITS, soft, weight).item())
    assert reading.metrics["accuracy"] == (LOGITS.argmax(1) == LABELS).double().mean()


def test_an_own_loss_is_weighted_by_rows_or_as_it_says() -> None:
    def own(output: Tensor, target: Tensor) -> Tensor:
        return F.multi_margin_loss(output, target)

    expected = F.multi_margin_loss(LOGITS, LABELS).item()
    assert over(Classification(loss_function=own), LOGITS, LABELS).loss == pytest.approx(expected)

    def weighted(output: Tensor, target: Tensor) -> Loss:
        counts = (target > 1).double()
        each = F.multi_margin_loss(output, target, reduction="none") * counts
        return Loss(each.sum() / counts.sum().clamp_min(1), counts.sum())

    each = F.multi_margin_loss(LOGITS, LABELS, reduction="none")[LABELS > 1]
    found = over(Classification(loss_function=weighted), LOGITS, LABELS).loss
    assert found == pytest.approx(each.mean().item())


@pytest.mark.parametrize("ignore_index", [None, -100, 0])
def test_next_token(ignore_index: int | None) -> None:
    logits, target = drawn(20, 6, 9), labels(9, 20, 6)
    if ignore_index is not None:
        target = _ignoring(target, ignore_index)
    reading = over(NextToken(ignore_index=ignore_index), logits, target)
    index = -100 if ignore_index is None else ignore_index
    expected = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=index).item()
    assert reading.loss == pytest.approx(expected)
    right = (logits.argmax(-1) == target)[target != index].double().mean().item()
    assert reading.metrics == pytest.approx({"accuracy": right, "perplexity": math.exp(expected)})


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("ignore_index", [None, 255, 1])
def test_segmentation(weights: tuple[float, ...] | None, ignore_index: int | None) -> None:
    """One class occurs neither in labels nor in predictions; it has no part in the mean."""
    logits, target = drawn(20, 5, 4, 6), labels(4, 20, 4, 6)
    logits[:, 4] = -10
    if ignore_index is not None:
        target = _ignoring(target, ignore_index)
    task = Segmentation(class_weights=weights, ignore_index=ignore_index)
    reading = over(task, logits, target)
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    index = -100 if ignore_index is None else ignore_index
    expected = F.cross_entropy(logits, target, weight, ignore_index=index).item()
    assert reading.loss == pytest.approx(expected)
    counted = target != index
    true, predicted = target[counted], logits.argmax(1)[counted]
    iou = jaccard_score(true, predicted, average="macro")
    accuracy = (true == predicted).double().mean().item()
    assert reading.metrics == pytest.approx({"mean_iou": iou, "pixel_accuracy": accuracy})


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        (Classification(ignore_index=-1), (4, 5), (4,)),
        (Classification(ignore_index=-1, label_smoothing=0.1), (4, 5), (4,)),
        (Classification(ignore_index=-1, class_weights=WEIGHTS), (4, 5), (4,)),
        (NextToken(ignore_index=-1), (4, 3, 5), (4, 3)),
        (Segmentation(ignore_index=-1), (4, 5, 2, 3), (4, 2, 3)),
        (Segmentation(ignore_index=-1, class_weights=WEIGHTS), (4, 5, 2, 3), (4, 2, 3)),
    ],
)
def test_nothing_counts(
    task: Classification, outputs: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    """Then nothing is learnt, and there are no figures; plain torch would give NaN."""
    output, target = drawn(*outputs), torch.full(targets, -1)
    assert task.loss(output, target).mean == 0
    assert not gradient(task, output, target).any()
    reading = over(task, output, target, (0, 1, 4))
    assert (reading.loss, set(reading.metrics.values())) == (None, {None})


@pytest.mark.parametrize("task", [Classification(), NextToken(), Segmentation()])
def test_votes_are_probabilities_that_make_an_output_again(task: Classification) -> None:
    output = drawn(3, 4, 4, 4).float()
    votes = task.votes(output)
    dim = 1 if isinstance(task, Segmentation) else -1
    assert torch.allclose(votes.sum(dim), torch.ones(3, 4, 4))
    assert torch.allclose(task.votes(task.from_votes(votes)), votes)
    sure = torch.tensor([[[[1.0]], [[0.0]]]])
    assert torch.isfinite(task.from_votes(sure)).all()


INFO = DataInfo(name="own", sample_shape=(3,), classes=5, target_shape=())


def test_the_shape_of_an_output() -> None:
    pixels = DataInfo(name="own", sample_shape=(3, 4, 6), classes=5, target_shape=(4, 6))
    assert Classification().output_shape(INFO, None) == (5,)
    assert Classification(classes=7).output_shape(INFO, (9,)) == (7,)
    assert NextToken(vocabulary=7).output_shape(pixels, None) == (4, 6, 7)
    assert Segmentation().output_shape(pixels, None) == (5, 4, 6)
    assert Segmentation().width((5, 4, 6)) == Classification().width((4, 6, 5)) == 5


@pytest.mark.parametrize(
    ("task", "target", "said"),
    [
        (Classification(), torch.zeros(4), "targets are torch.float32, but classification wants"),
        (Classification(), torch.zeros(4, dtype=torch.int32), "targets are torch.int32"),
        (Classification(), torch.zeros(4, 2, dtype=torch.int64), r"targets of shape \[4, 2\]"),
        (
            Classification(),
            torch.tensor([0, 5]),
            "labels run from 0 to 5, but 5 classes allow 0 to 4",
        ),
        (Classification(), torch.tensor([-100, 2]), "give ignore_index="),
        (Classification(ignore_index=-1), torch.tensor([-1, 2, 9]), "labels run from 2 to 9"),
        (Classification(), torch.tensor([[0.5, 0.5, 0, 0, math.nan]]), "shares of classes"),
    ],
)
def test_bad_labels(task: Classification, target: Tensor, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        task.check_target(target, (5,))
    assert "\n" not in str(error.value)


def test_good_labels() -> None:
    Classification().check_target(torch.tensor([0, 4]), (5,))
    Classification().check_target(torch.full((2, 5), 0.2), (5,))
    Classification(ignore_index=255).check_target(torch.tensor([0, 255]), (5,))
    Classification(ignore_index=255).check_target(torch.tensor([255, 255]), (5,))
    Segmentation(ignore_index=255).check_target(torch.full((2, 4, 6), 255), (5, 4, 6))


def test_bad_arguments() -> None:
    for make, said in (
        (lambda: Classification(classes=0), "classes=0: give at least one"),
        (lambda: Classification(top_k=0), "top_k=0"),
        (lambda: Classification(class_weights=[1, -1]), "class_weights"),
        (lambda: Segmentation(class_weights=[0.0]), "class_weights"),
        (lambda: NextToken(vocabulary=-1), "vocabulary=-1"),
        (lambda: Classification(top_k=6).output_shape(INFO, None), "top_k=6: there are 5"),
        (lambda: Classification(class_weights=[1]).output_shape(INFO, None), "1 for 5 classes"),
        (
            lambda: Classification().output_shape(
                DataInfo(name="own", sample_shape=(3,), classes=None, target_dtype=torch.float32),
                None,
            ),
            "choose the task Regression",
        ),
        (
            lambda: Classification().output_shape(replace(INFO, target_shape=(4, 6)), (5, 4, 6)),
            "are of pixels: choose the task Segmentation",
        ),
        (lambda: Segmentation().output_shape(INFO, None), r"segmentation wants labels \[B, H, W\]"),
    ):
        with pytest.raises(UserError, match=said):
            make()
