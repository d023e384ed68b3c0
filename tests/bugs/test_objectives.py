"""Defects of objectives that users write, one test each; the docstring gives the cause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pipelocal as pl
from pipelocal.stage.replay import replay

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


class Centred(pl.Greedy, nn.Module):
    """The loss less its running mean, which is reported."""

    mean: Tensor
    figure_names = ("mean",)

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(()))

    def loss(self, local: pl.LocalPass, out: Tensor) -> Tensor:
        loss = super().loss(local, out)
        self.mean.lerp_(loss.detach(), 0.5)
        self.figures["mean"] = self.mean.clone()
        return loss


class WithoutTheTask(pl.Greedy):
    def loss(self, local: pl.LocalPass, out: Tensor) -> Tensor:
        assert local.target is not None
        return out.square().mean()


def pipeline(objective: Any) -> pl.Pipeline:
    torch.manual_seed(3)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)]
    net = nn.Sequential(*layers, nn.Linear(6, 2))
    return pl.Pipeline(net, stages=2, objective=objective, snapshot_every=3)


def fit(pipe: pl.Pipeline, **rest: Any) -> dict[str, Any]:
    return pipe.fit(DataLoader(TensorDataset(X, Y), 10), epochs=2, progress=False, **rest)


def test_an_objective_that_had_buffers_alone_began_anew_after_a_stop(tmp_path: Path) -> None:
    """Whether an objective has a state to save was asked of its parameters, and buffers were forgotten."""

    class Fail(pl.Callback):
        def on_batch_end(self, event: pl.BatchEnd) -> None:
            if event.stage == 2 and event.step == 6:
                raise RuntimeError("the power is out")

    whole = fit(pipeline(Centred()))
    with pytest.raises(pl.StageError, match="the power is out"):
        fit(pipeline(Centred()), out=str(tmp_path / "run"), callbacks=[Fail()])
    again = fit(pipeline(Centred()), out=str(tmp_path / "run"))
    for one, other in zip(whole["stages"], again["stages"], strict=True):
        assert one["figures"]["train"]["mean"] == other["figures"]["train"]["mean"]


def test_an_objective_that_did_not_run_the_head_ended_in_an_assertion() -> None:
    """Figures are made of what the head answered in ``task_loss``, which an objective need not call."""
    with pytest.raises(
        pl.StageError, match=r"not run the head by local\.task_loss.*call it"
    ) as told:
        fit(pipeline(WithoutTheTask()))
    assert "\n" not in str(told.value)


def test_a_second_pass_changed_the_buffers_of_a_module_with_two_names() -> None:
    """functional_call put the copies in twice, and put back one of them for what was there before."""
    norm = nn.BatchNorm1d(6)
    body = nn.Sequential(norm, nn.Linear(6, 6), norm)
    held = norm.running_mean
    assert held is not None
    before = held.clone()
    replay(body, X)
    assert norm.running_mean is held
    assert torch.equal(held, before)
