"""MixUp and CutMix: training alone, the same bits from any step on, areas that agree with the targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pipelocal import Greedy, Pipeline
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import DataInfo, DataOptions
from pipelocal.data.batches import Batch, everything
from pipelocal.data.mixing import Mixing
from pipelocal.data.opening import NamedData
from pipelocal.errors import UserError


def images(rows: int = 5) -> Batch:
    """Image ``i`` is all ``i``, and so is its class."""
    classes = torch.arange(rows)
    x = classes.float().view(rows, 1, 1, 1).expand(rows, 2, 8, 8).contiguous()
    return Batch(x, classes, classes)


@pytest.mark.parametrize(
    "options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}]
)
def test_targets_say_what_is_in_the_image(options: dict[str, float]) -> None:
    mixing, changed = Mixing(**options), 0
    for seed in range(20):
        batch = mixing.mix(images(), 5, seed)
        assert torch.equal(batch.x, mixing.mix(images(), 5, seed).x)
        assert batch.target.dtype == torch.float32
        assert torch.allclose(batch.target.sum(1), torch.ones(5))
        mean = batch.target @ torch.arange(5.0)
        assert torch.allclose(batch.x.mean((1, 2, 3)), mean, atol=1e-5)
        changed += not torch.equal(batch.x, images().x)
    assert changed > 10


def test_both_take_turns() -> None:
    boxes = 0
    for seed in range(40):
        batch = Mixing(mixup=1.0, cutmix=1.0).mix(images(), 5, seed)
        boxes += bool((batch.x == batch.x.round()).all())
    assert 10 < boxes < 30


@pytest.mark.parametrize("how", ["mixup", "cutmix"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "lg-fg", "model": "local-mixer"}, "--objective lg-fg: its formulas"),
        ({"objective": "greedy", "model": "mlp", "bp_free": True}, "--bp-free: its formulas"),
    ],
)
def test_formulas_are_of_whole_labels(how: str, options: dict[str, Any], words: str) -> None:
    blueprint_of(TrainConfig(**options))
    with pytest.raises(UserError, match=words):
        blueprint_of(TrainConfig(**{**options, how: 0.2}))


def test_formulas_are_of_whole_labels_batch_by_batch() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3))
    pipe = Pipeline(net, stages=2, objective=Greedy(), bp_free=True, head="linear")
    x, labels = torch.randn(3, 4), torch.tensor([0, 2, 1])
    pipe.step(x, labels)
    with pytest.raises(UserError, match="one class a prediction"):
        pipe.step(x, nn.functional.one_hot(labels).float())


def test_one_row_and_evaluation() -> None:
    assert Mixing(mixup=1.0).mix(images(1), 3, 0).target.tolist() == [[1, 0, 0]]
    data = NamedData(DataOptions(data="digits", mixup=0.2), 0)
    info = data.info()
    assert info.train_target is not None
    assert info.train_target.shape == (10,)
    batches = data.batches()
    whole = list(batches.training(2, 0, everything))
    again = list(batches.training(2, 20, everything))
    assert all(torch.equal(a.x, b.x) for a, b in zip(whole[20:], again, strict=True) if a and b)
    assert next(batches.testing(everything)).target.dtype == torch.int64  # type: ignore[union-attr]


INFO = DataInfo(name="d", sample_shape=(3, 4, 4), classes=3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_dtype": torch.float32}, "one class for each sample"),
        ({"classes": None}, "of an unknown number of classes"),
        ({"sample_shape": (4,), "sample_dtype": torch.int64}, "not tokens"),
        ({"sample_shape": (4,)}, "--cutmix is for images"),
    ],
)
def test_what_cannot_be_mixed(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Mixing(cutmix=1.0).described(replace(INFO, **changes))
