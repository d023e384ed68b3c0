"""rnn and rnn-last: shapes, what a step sees, first weights, and the layers of the baseline."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from pipelocal.errors import UserError
from pipelocal.models import build_chain
from pipelocal.models.rnn import rnn


def test_it_reads_out_every_step_or_the_last() -> None:
    x = torch.randn(3, 5, 4)
    every = build_chain("rnn", input_shape=(5, 4), classes=7, seed=0)
    last = build_chain("rnn-last", input_shape=(5, 4), classes=7, seed=0)
    assert [unit.name for unit in every.units] == ["layer1", "layer2", "layer3", "layer4"]
    assert every.tried()[1] == [(5, 64)] * 4
    made = every.build_whole(seed=0)(x)
    assert made.shape == (3, 5, 7)
    assert torch.allclose(last.build_whole(seed=0)(x), made[:, -1], atol=1e-6)


def test_a_step_sees_those_before_it() -> None:
    model = rnn((5, 4), 7).build_whole(seed=0)
    x = torch.randn(1, 5, 4)
    changed = x.clone()
    changed[:, 3] += 1
    same = [bool(one) for one in (model(x) == model(changed)).all(2)[0]]
    assert same == [True, True, True, False, False]


def test_images_are_read_row_by_row() -> None:
    images = torch.randn(2, 3, 5, 4)
    model = rnn((3, 5, 4), 7).build_whole(seed=0)
    rows = torch.stack([images[:, :, row].flatten(1) for row in range(5)], 1)
    assert torch.equal(model(images), rnn((5, 12), 7).build_whole(seed=0)(rows))


def test_truncated_layers_differ_in_their_gradient_alone() -> None:
    x, made = torch.randn(2, 5, 4), []
    for truncated in (False, True):
        model = rnn((5, 4), 3, truncated=truncated, layers=2).build_whole(seed=0)
        out: Tensor = model(x)
        weight = model.get_parameter("layer2.recurrent")
        made.append((out, *torch.autograd.grad(out[:, -1].sum(), weight)))
    assert torch.equal(made[0][0], made[1][0])
    assert not torch.equal(made[0][1], made[1][1])


@pytest.mark.parametrize("build", [rnn, partial(rnn, last=True)])
def test_other_samples_are_one_line(build: partial[object]) -> None:
    with pytest.raises(
        UserError, match=r"rnn.* takes sequences .*choose another data set or model"
    ):
        build((4,), 3)
