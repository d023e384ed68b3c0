"""Runs of every task: through a Pipeline, on the command line, and behind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score, r2_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pipelocal as pl
from pipelocal import cli
from pipelocal.errors import UserError
from pipelocal.results.early_exit import HeadedNetwork
from tests.tasks.figures import labels

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
IMAGES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def _load(x: Tensor, target: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, target), 16)


def _net(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
    return nn.Sequential(
        hidden, nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, outputs)
    )


def _maps(classes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ReLU()),
        nn.Conv2d(8, classes, 1),
    )


def _sgd(named: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    return torch.optim.SGD([parameter for _, parameter in named], lr=0.05)


def _fit(net: nn.Module, task: Any, x: Tensor, y: Tensor, **options: Any) -> tuple[Any, Any]:
    head = options.pop("head", "linear")
    pipe = pl.Pipeline(net, stages=2, task=task, optimizer=_sgd, head=head)  # type: ignore[arg-type]
    data = _load(x, y)
    return pipe, pipe.fit(data, data, epochs=2, progress=False, **options)


@torch.no_grad()
def test_regression() -> None:
    """The figures of a run are those of the model that comes out of it."""
    y = X[:, 0] - X[:, 1]
    pipe, summary = _fit(_net(1), pl.tasks.Regression(outputs=1), X, y)
    answers = pipe.module()(X)[:, 0]
    assert summary["eval"]["r2"] == pytest.approx(r2_score(y, answers), rel=1e-5)
    assert summary["eval"]["loss"] == pytest.approx(float((answers - y).square().mean()))
    assert set(summary["eval"]) == {"loss", "r2", "mae", "rmse"}
    assert set(summary["ensemble"]) == {"r2", "mae", "rmse"}
    assert "eval_accuracy" not in summary
    again = pipe.evaluate(_load(X, y))
    assert {name: again[name] for name in summary["eval"]} == summary["eval"]
    assert again["ensemble"] == summary["ensemble"]
    assert [stage["r2"] for stage in again["stages"]][-1] == again["r2"]


@torch.no_grad()
def test_multi_label() -> None:
    y = (X[:, :3] > 0).long()
    pipe, summary = _fit(_net(3), pl.tasks.MultiLabel(labels=3), X, y)
    expected = f1_score(y, pipe.module()(X) > 0, average="micro")
    assert summary["eval"]["f1"] == pytest.approx(expected)


@torch.no_grad()
@pytest.mark.parametrize("head", ["linear", "downstream", "auto"])
def test_segmentation(head: str) -> None:
    y = labels(3, 20, 8, 8)
    y[:, 0] = 255
    task = pl.tasks.Segmentation(classes=3, ignore_index=255)
    pipe, summary = _fit(_maps(3), task, IMAGES, y, head=head)
    right = (pipe.module()(IMAGES).argmax(1) == y)[:, 1:]
    assert summary["eval"]["pixel_accuracy"] == pytest.approx(float(right.double().mean()))
    with pytest.raises(UserError, match=r"makes outputs \[B, 3, 8, 8\], but Segmentation .* 4, 8"):
        _fit(_maps(3), pl.tasks.Segmentation(classes=4), IMAGES, y)


def test_step_reports_the_tasks_metrics() -> None:
    pipe = pl.Pipeline(_net(1), stages=2, task=pl.tasks.Regression(), optimizer=_sgd)
    figures = pipe.step(X, X[:, 0])
    assert set(figures) == {"loss", "r2", "mae", "rmse", "stages"}


def test_a_bad_target_in_the_middle_is_one_line() -> None:
    y = (X[:, 0] > 0).long()
    y[40] = 2
    with pytest.raises(
        UserError, match=r"a training batch in epoch 1 \(sample 40\): labels run from 0 to 2, but 2"
    ):
        _fit(_net(2), pl.tasks.Classification(), X, y)
    with pytest.raises(
        UserError, match=r"targets are torch.float32 \[B\], and classification wants"
    ):
        _fit(_net(1), None, X, X[:, 0])


@dataclass(frozen=True)
class Least(pl.tasks.Task):
    """A task of a user's own, of which less is better."""

    metrics = ("error",)
    higher_is_better = False

    def loss(self, output: Tensor, target: Tensor) -> pl.tasks.Loss:
        return pl.tasks.Loss((output[:, 0] - target).abs().mean(), len(target))

    def sums(self, output: Tensor, target: Tensor) -> pl.tasks.Sums:
        return {"rows": len(target), "error": (output[:, 0] - target).abs().sum()}

    def figures(self, sums: Any) -> dict[str, float]:
        return {"error": float(sums["error"] / sums["rows"])}


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    y = X[:, 0]
    out = tmp_path / "run"
    _, summary = _fit(_net(1), Least(), X, y, out=str(out))
    assert summary["eval"]["error"] == pytest.approx(summary["eval"]["loss"])
    manifest = json.loads((out / "stages" / "manifest.json").read_text())
    assert manifest["evaluated"]["metric"] == "error"
    assert not manifest["evaluated"]["higher_is_better"]


OWN = """
import torch
import torch.nn.functional as F
from torch import nn
from pipelocal.data import ArrayDataset, DataInfo, DatasetEntry

INFO = DataInfo(name="signs", sample_shape=(4,), classes=None, target_shape=(2,))

def load(root, seed):
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, :2] > 0).long()
    return ArrayDataset(info=INFO, train_x=x[:64], train_y=y[:64], test_x=x[64:], test_y=y[64:],
                        mean=(0.0,) * 4, std=(1.0,) * 4)

signs = DatasetEntry(INFO, load)

def soft_margin(output, target):
    return F.multilabel_soft_margin_loss(output, target.float())

def net(shape, outputs):
    return nn.Sequential(nn.Linear(shape[0], 8), nn.ReLU(), nn.Linear(8, outputs))
"""


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = tmp_path / "own_run.py", tmp_path / "run"
    file.write_text(OWN)
    options = ["--model", f"{file}:net", "--data", f"{file}:signs", "--stages", "2", "--plain"]
    options += ["--epochs", "1", "--lr", "0.05", "--out", str(run)]
    options += ["--task", "multi-label", "--loss", f"{file}:soft_margin"]
    assert cli.run(["train", *options]) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "(last head)" in line]
    assert "f1 " in line
    assert " eval " in said
    summary = json.loads((run / "summary.json").read_text())
    assert cli.run(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["eval"] == summary["eval"]
    assert cli.run(["evaluate", str(run)]) == 0
    assert f"f1 {summary['eval']['f1']:.4f}  macro_f1" in capsys.readouterr().out
    network = pl.load_with_heads(str(run))
    with pytest.raises(UserError, match="this run learnt MultiLabel"):
        network.predict(torch.zeros(1, 4), until=0.5)
    outputs = network.all_logits(torch.zeros(1, 4))
    mean = torch.stack([output.sigmoid() for output in outputs]).mean(0)
    torch.testing.assert_close(network.ensemble(torch.zeros(1, 4)), mean)
    assert isinstance(network, HeadedNetwork)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (nn.MSELoss(), r"loss: it spreads targets \[B\] over outputs \[B, 3\]: choose a loss"),
        (
            nn.CrossEntropyLoss(reduction="none"),
            r"loss: it returns float32 \[3\]: return one number",
        ),
        (lambda out, _: float(out.detach().sum()), "loss: it returns float: return one number"),
        (
            nn.BCEWithLogitsLoss(),
            r"stage 1, batch 1: ValueError: .*; the loss was given outputs float32 \[3, 3\] and targets",
        ),
    ],
)
def test_a_loss_that_does_not_go_with_the_data(loss: Any, said: str) -> None:
    """The first one trains in silence where a batch has as many rows as there are classes."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(12, 6), torch.arange(12) % 3)
    pipe = pl.Pipeline(_net(3), stages=2, loss=loss)
    with pytest.raises(pl.PipelocalError, match=said):
        pipe.fit(data, epochs=1, batch_size=3, progress=False)


def test_a_loss_of_one_element_is_one_number() -> None:
    data = TensorDataset(torch.randn(12, 6), torch.arange(12) % 3)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(out, y)[None]

    pipe = pl.Pipeline(_net(3), stages=2, loss=loss)
    assert pipe.fit(data, epochs=1, batch_size=3, progress=False)["steps"] == 4
