"""Label smoothing in the loss of auxiliary heads alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import pipelocal as pl
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import DataInfo
from pipelocal.errors import UserError
from pipelocal.run.blueprint import Blueprint
from tests.heads.test_downstream import CPU

IMAGES = DataInfo(name="images", sample_shape=(1, 8, 8), classes=5)


def of_command_line() -> Blueprint:
    config = TrainConfig(
        model="mlp", stages=2, head_smoothing=0.2, objective="sgr", reconcile_every=1
    )
    return blueprint_of(config, info=IMAGES)


def of_python() -> Blueprint:
    smoothed = pl.tasks.Classification(label_smoothing=0.2)
    chain = of_command_line().chain
    recipe = pl.Pipeline(chain, stages=2, head_task=smoothed)._given.recipe
    plain = of_command_line()
    return Blueprint.of(chain, recipe, IMAGES).cut_into(plain.cuts)


@pytest.mark.parametrize("make", [of_command_line, of_python])
def test_it_is_in_the_training_loss_of_all_but_the_last_stage(
    make: Callable[[], Blueprint],
) -> None:
    """When trained, when recomputed for reconciliation, and when frozen; evaluations have none."""
    blueprint = make().checked()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 1, 8, 8, generator=generator)
    target = torch.randint(5, (7,), generator=generator)
    for number, smoothing in ((1, 0.2), (2, 0.0)):
        stage = blueprint.build_stage(number, device=CPU, total_steps=2)
        out = stage.forward(x, reconciled=True)
        logits = stage.head(out)
        expected = F.cross_entropy(logits, target, label_smoothing=smoothing)
        stage.output_gradient(target)
        torch.testing.assert_close(stage.replay_loss(out, target), expected)
        stage.reconcile(None)
        torch.testing.assert_close(stage.metrics(target).loss, expected)
        stage.local_loss(target)
        torch.testing.assert_close(stage.metrics(target).loss, expected)
        assert stage.task.loss(logits, target).mean == F.cross_entropy(logits, target)
        x = out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"task": "regression"},
            r"--head-smoothing 0.1: the task Regression has no label smoothing",
        ),
        ({"task": "next-token", "model": "gpt"}, "the task NextToken has no label smoothing"),
        ({"bp_free": True, "stages": 6}, "--head-smoothing, or leave out --bp-free"),
        ({"head_smoothing": 1.0}, "--head-smoothing 1.0: give a number from 0 to below 1"),
        ({"loss": f"{__name__}:own_loss"}, "of the cross entropy: leave it out, or the loss"),
    ],
)
def test_where_there_is_none(options: dict[str, object], said: str) -> None:
    given = {"model": "mlp", "head_smoothing": 0.1, **options}
    with pytest.raises(UserError, match=said):
        validate(TrainConfig(**given))  # type: ignore[arg-type]


def own_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, target)


def test_a_head_s_task_must_be_one() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    with pytest.raises(UserError, match="task: give an object"):
        pl.Pipeline(model, stages=1, head_task=pl.tasks.Classification)  # type: ignore[arg-type]
