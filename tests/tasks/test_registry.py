"""Tasks by name and by reference, and what is refused as a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelocal.errors import UserError
from pipelocal.tasks import Classification, Loss, Regression, Segmentation, Sums, Task
from pipelocal.tasks.registry import TASKS, task_named
from pipelocal.tasks.trial import check_task, shapes_of_sums

OWN = """
import pipelocal as pl

void = pl.tasks.Segmentation(ignore_index=255)

def five():
    return pl.tasks.Classification(classes=5)

def cubed(output, target):
    return (output - target).abs().pow(3).mean()

def needs(this):
    return void

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "own_tasks.py"
    path.write_text(OWN)
    return str(path)


def test_by_name() -> None:
    for name in TASKS:
        assert task_named(name) == TASKS.get(name)()
    assert task_named("regression", "huber") == Regression(loss=torch.nn.functional.huber_loss)


def test_by_reference(file: str) -> None:
    assert task_named(f"{file}:void") == Segmentation(ignore_index=255)
    assert task_named(f"{file}:five") == Classification(classes=5)
    task = task_named("regression", f"{file}:cubed")
    assert task.loss(torch.tensor([[2.0]]), torch.tensor([0.0])).mean == 8


@pytest.mark.parametrize(
    ("task", "loss", "said"),
    [
        ("regresion", None, "did you mean 'regression'"),
        ("regression", "hubert", "did you mean 'huber'"),
        ("classification", "mse", "--loss mse is of --task regression"),
        ("next-token", "{file}:cubed", "the task NextToken has a loss of its own"),
        ("{file}:needs", None, "cannot be made"),
        ("{file}:number", None, "task int has no 'metrics'"),
    ],
)
def test_what_is_refused(file: str, task: str, loss: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        task_named(task.format(file=file), loss and loss.format(file=file))


@dataclass(frozen=True)
class Named(Task):
    """A task whose names and sums can be chosen."""

    metrics: tuple[str, ...] = ("share",)
    add: Callable[[Tensor, Tensor], Sums] = lambda _, target: {"rows": len(target)}

    def loss(self, output: Tensor, target: Tensor) -> Loss:
        return Loss(output.mean(), len(target))

    def sums(self, output: Tensor, target: Tensor) -> Sums:
        return self.add(output, target)

    def figures(self, sums: Any) -> dict[str, float]:
        return {"share": float(sums["rows"])}


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Named, r"give an object, Named\(\), and not its class"),
        (object(), "task object has no 'metrics': derive it from pipelocal.tasks.Task"),
        (Named(metrics=()), "metrics is empty"),
        (Named(metrics="share"), "give a tuple of names"),  # type: ignore[arg-type]
        (Named(metrics=("loss",)), "the metric 'loss' is there already"),
        (Named(metrics=("step",)), "the metric 'step' is there already"),
        (Named(metrics=("a", "a")), "the metric 'a' is there already"),
    ],
)
def test_no_task(task: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_task(task)


def _shapes(task: Task) -> dict[str, tuple[int, ...]]:
    return shapes_of_sums(task, (3,), (), torch.int64, torch.device("cpu"))


def test_shapes_of_sums() -> None:
    assert _shapes(Classification()) == {"predictions": (), "accuracy": ()}
    found = shapes_of_sums(
        Segmentation(ignore_index=9), (4, 6, 8), (6, 8), torch.int64, torch.device("cpu")
    )
    assert found == {"confusion": (4, 4)}


@pytest.mark.parametrize("large", [False, True])
def test_a_task_may_look_at_values(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which meta tensors, by which large outputs are tried first, do not have."""
    monkeypatch.setattr("pipelocal.tasks.trial.LARGE", 0 if large else 100)
    looking = Named(add=lambda output, target: {"rows": output[target == 0].sum(0)})
    assert _shapes(looking) == {"rows": (3,)}


def test_sums_that_cannot_be_made() -> None:
    with pytest.raises(UserError, match=r"sums does not take outputs \[2, 3\] .* of zeros.*index"):
        _shapes(Named(add=lambda output, _: {"rows": output[:, 5]}))
    with pytest.raises(UserError, match="figures is given 'weight' anyway"):
        _shapes(Named(add=lambda output, _: {"weight": output.sum()}))
