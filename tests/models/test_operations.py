"""Multiply-adds of units."""

import pytest
import torch
from torch import Tensor, nn

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import DataInfo
from pipelocal.models import Chain
from tests.models.several_tensors import Encoder


def test_a_resnets_are_those_of_its_convolutions_and_its_linear_map() -> None:
    info = DataInfo(name="images", sample_shape=(3, 32, 32), classes=10)
    chain = blueprint_of(TrainConfig(model="resnet8"), info=info).chain
    stem, first, *_, classifier = chain.multiply_adds()
    assert stem == 32 * 32 * 9 * 3 * 16
    assert first == 2 * 32 * 32 * 9 * 16 * 16
    assert classifier == 640
    assert chain.multiply_adds() is chain.multiply_adds(), "counted once"


@pytest.mark.parametrize("model", ["gpt", "lstm"])
def test_layers_of_equal_kind_count_alike(model: str) -> None:
    info = DataInfo(
        name="bytes", sample_shape=(6,), classes=7, target_shape=(6,), sample_dtype=torch.int64
    )
    embedding, *layers, classifier = blueprint_of(
        TrainConfig(model=model), info=info
    ).chain.multiply_adds()
    assert embedding == 0
    assert layers == [layers[0]] * len(layers)
    assert layers[0] > classifier > 0


def test_several_tensors_are_given_to_a_unit_that_takes_them() -> None:
    ids = torch.zeros(2, 9, dtype=torch.int64)
    given = {"ids": ids, "attention_mask": ids}
    chain, _ = Chain.from_module(Encoder(), units=Encoder.UNITS, inputs=given).tried()
    assert all(count > 0 for count in chain.multiply_adds()[1:])


class ByValues(nn.Module):
    """Looks at values, of which the meta device has none; the second form fails on any."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        if self.fails and torch.utils._python_dispatch._len_torch_dispatch_stack():
            raise RuntimeError("not with a counter")
        out: Tensor = self.linear(x)
        return out if bool((out == out).all()) else out * 0


@pytest.mark.parametrize(("fails", "count"), [(False, 16), (True, 0)])
def test_what_meta_cannot_do_is_counted_with_values_or_is_nothing(fails: bool, count: int) -> None:
    model = nn.Sequential(ByValues(fails=fails), nn.Linear(4, 3))
    chain, _ = Chain.from_sequential(model, input_shape=(4,)).tried()
    assert chain.multiply_adds() == (count, 12)
