"""Defects of what begins from another run, one test each; the docstring gives the cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR
from torch.utils.data import TensorDataset

import pipelocal as pl

GENERATOR = torch.Generator().manual_seed(0)
DATA = TensorDataset(torch.randn(40, 8, generator=GENERATOR), torch.arange(40) % 3)
X, Y = DATA.tensors

Named = list[tuple[str, nn.Parameter]]
Schedule = Callable[[torch.optim.Optimizer, int], LRScheduler]


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 3))


def sgd(named: Named, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for _, p in named], lr=lr, momentum=0.9)


def pipeline(**options: Any) -> pl.Pipeline:
    given: dict[str, Any] = {"stages": 2, "optimizer": sgd, "head": "linear", **options}
    return pl.Pipeline(net(), device="cpu", **given)


def fit(pipe: pl.Pipeline, epochs: int, **options: Any) -> None:
    pipe.fit(DATA, epochs=epochs, batch_size=8, progress=False, **options)


def first(model: nn.Module) -> torch.Tensor:
    return next(model.parameters()).detach()


class Rates(pl.Callback):
    """The learning rates of a stage, behind each batch."""

    def __init__(self, pipe: pl.Pipeline, stage: int = 1) -> None:
        self.of, self.seen = stage, list[float]()
        self.pipe = pipe

    def optimizer(self, named: Named, place: pl.Place) -> torch.optim.Optimizer:
        made = sgd(named, 0.1 / place.number)
        if place.number == self.of:
            self.made = made
        return made

    def on_batch_end(self, event: Any) -> None:
        if event.stage == self.of:
            self.seen.append(self.made.param_groups[0]["lr"])


def test_an_average_of_nothing_was_the_initial_weights(tmp_path: Path) -> None:
    """The average was set up when a stage was built, and not again when weights were loaded."""
    fit(pipeline(), 2, out=str(tmp_path / "plain"))
    pipe = pipeline(ema=0.9)
    pipe.load(str(tmp_path / "plain"))
    with pytest.raises(pl.UserError, match="nothing was averaged yet"):
        pipe.module(averaged=True)
    pipe = pipeline(ema=0.9, freeze_stage="1:0")
    pipe.load(str(tmp_path / "plain"))
    fit(pipe, 1)
    assert torch.equal(first(pipe.module(averaged=True)), first(pipe.module()))


def test_the_average_of_a_frozen_stage_draws_near() -> None:
    """It stood still from then on, while the later stages trained on what the frozen one computes."""
    pipe = pipeline(ema=0.5, freeze_stage="1:5")
    fit(pipe, 12)
    averaged, trained = first(pipe.module(averaged=True)), first(pipe.module())
    torch.testing.assert_close(averaged, trained, rtol=0, atol=1e-6)


SCHEDULES: dict[str, Schedule] = {
    "cosine": lambda optimizer, updates: CosineAnnealingLR(optimizer, updates),
    "one cycle": lambda optimizer, updates: OneCycleLR(optimizer, 0.2, total_steps=updates + 1),
    "constant": lambda optimizer, _: LambdaLR(optimizer, lambda _: 1.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stages", [2, 4])
def test_another_run_kept_the_schedule_of_the_old_one(
    tmp_path: Path, name: str, stages: int
) -> None:
    """The state of a user's schedule was loaded, with its length and the old cut's learning rates."""
    rates: dict[str, list[float]] = {}
    for what, cut, epochs, resume in (
        ("old", 2, 2, None),
        ("new", stages, 4, tmp_path / "old"),
        ("whole", stages, 4, None),
    ):
        seen = Rates(pipeline(), stage=2)
        pipe = pipeline(stages=cut, optimizer=seen.optimizer, schedule=SCHEDULES[name])
        options = {} if resume is None else {"resume": str(resume)}
        fit(pipe, epochs, out=str(tmp_path / what), callbacks=[seen], **options)
        rates[what] = seen.seen
    assert len(rates["old"]) == 10
    assert rates["new"] == pytest.approx(rates["whole"][10:], rel=1e-9, abs=1e-12)


def test_a_schedule_began_where_the_old_run_had_none(tmp_path: Path) -> None:
    """Its state was looked for in the snapshot."""
    fit(pipeline(optimizer=Rates(pipeline()).optimizer), 2, out=str(tmp_path / "old"))
    for schedule in ("cosine", SCHEDULES["cosine"]):
        seen = Rates(pipeline())
        pipe = pipeline(optimizer=seen.optimizer, schedule=schedule)
        fit(pipe, 4, resume=str(tmp_path / "old"), callbacks=[seen])
        wanted = [0.05 * (1 + torch.cos(torch.tensor(torch.pi * k / 20)).item()) for k in range(21)]
        assert seen.seen == pytest.approx(wanted[11:], abs=1e-7)


@pytest.mark.parametrize("begun", ["fit", "load"])
def test_step_went_on_with_what_a_schedule_had_left(tmp_path: Path, begun: str) -> None:
    """Of the rate nothing, so that no weight moved; and after load() batches were not accumulated."""
    pipe = pipeline(schedule="cosine", accumulate=2)
    fit(pipe, 2, out=str(tmp_path / "run"))
    if begun == "load":
        pipe = pipeline(schedule="cosine", accumulate=2)
        pipe.load(str(tmp_path / "run"))
    start = first(pipe.module()).clone()
    other = pipeline(accumulate=2)
    other.load(str(tmp_path / "run"))
    for moved in (False, True):
        for each in (pipe, other):
            each.step(X[:8], Y[:8])
        assert torch.equal(first(pipe.module()), start) is not moved
        assert torch.equal(first(pipe.module()), first(other.module()))
