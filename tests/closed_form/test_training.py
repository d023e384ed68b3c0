"""BP-free training from the command line: it learns, over ranks with the same bits, or says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelocal import cli
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, run_state, train_alone

MODELS = Path(__file__).parents[1] / "models_for_tests.py"

OWN_MODELS = """
from torch import nn


def images(shape, classes):
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(shape[0], 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)),
    )


def doubled(shape, classes):
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 8)),
        nn.Linear(8, classes),
    )


def gelu(shape, classes):
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU()), nn.Linear(8, classes)
    )


def deep_classifier(shape, classes):
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8)),
        nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, classes)),
    )
"""


@pytest.fixture
def own_models(tmp_path: Path) -> Path:
    file = tmp_path / "own.py"
    file.write_text(OWN_MODELS)
    return file


def _summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("objective", [pytest.param("greedy", marks=pytest.mark.slow), "sgr"])
def test_an_mlp_learns_the_digits(tmp_path: Path, objective: str) -> None:
    arguments = ["--model", "mlp", "--stages", "6", "--bp-free", "--objective", objective]
    run = train_alone([*arguments, "--epochs", "4"], tmp_path / "run")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for stage in range(1, 7):
        losses = [r["loss"] for r in records if r["event"] == "train" and r["stage"] == stage]
        assert losses[-1] < losses[0] / 3
    summary = _summary(run)
    assert summary["eval_accuracy"] > 0.93
    reconciled = [stage["reconciliation"] is not None for stage in summary["stages"]]
    assert reconciled == [False, *[objective == "sgr"] * 5]
    assert all(stage["peak_memory_bytes"] > 0 for stage in summary["stages"])


@pytest.mark.parametrize("model", ["mlp", "allconv"])
def test_it_is_the_training_that_autograd_does(tmp_path: Path, model: str) -> None:
    """In float32, so for a few batches only, after which rounding has its own way."""
    stages = {"mlp": "6", "allconv": "8"}[model]
    arguments = ["--model", model, "--stages", stages, "--objective", "sgr", "--max-steps", "5"]
    arguments += ["--lr", "0.01", "--head", "linear"]
    with_autograd = run_state(train_alone(arguments, tmp_path / "autograd"))
    without = run_state(train_alone([*arguments, "--bp-free"], tmp_path / "bp-free"))
    assert with_autograd.keys() == without.keys()
    for name, value in with_autograd.items():
        if isinstance(value, torch.Tensor) and "/body/" in name:
            torch.testing.assert_close(without[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ("mlp", "sgr"),
        ("allconv", "greedy"),
        pytest.param("mlp", "greedy", marks=pytest.mark.slow),
        pytest.param("allconv", "sgr", marks=pytest.mark.slow),
    ],
)
def test_over_ranks_equals_one_process(tmp_path: Path, model: str, objective: str) -> None:
    stages, sizes = {"mlp": ("6", (2, 6)), "allconv": ("8", (3,))}[model]
    arguments = ["--model", model, "--stages", stages, "--bp-free", "--objective", objective]
    arguments += ["--max-steps", "25", "--epochs", "2"]
    alone = train_alone(arguments, tmp_path / "alone")
    for size in sizes:
        out = tmp_path / f"ranks-{size}"
        run_ranks(tmp_path / f"log-{size}", ["train", *arguments, "--out", str(out)], size)
        assert_same_bits(alone, out)


def test_a_model_of_one_s_own_is_evaluated_and_exported(
    tmp_path: Path, own_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", f"{own_models}:images", "--stages", "2", "--bp-free", "--epochs", "1"]
    run = train_alone(arguments, tmp_path / "run")
    capsys.readouterr()
    assert cli.run(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["eval_accuracy"] == _summary(run)["eval_accuracy"]
    assert cli.run(["export", str(run), "--to", str(tmp_path / "model.pt")]) == 0
    assert "0.0.weight" in torch.load(tmp_path / "model.pt", weights_only=True)


ERRORS = {
    "more than one layer": (
        ["--model", "mlp", "--stages", "2"],
        "stage 1 has 3 layers (units layer1, layer2, layer3), but --bp-free wants one a stage: "
        "--stages 6",
    ),
    "more than one layer in a unit": (
        ["--model", "OWN:doubled", "--stages", "1"],
        "stage 1: unit '0' has 2 layers, but --bp-free wants one a stage: make it 2 units",
    ),
    "a module without a closed form": (
        ["--model", "OWN:gelu", "--stages", "1"],
        "stage 1: unit '0' has no closed form (GELU): choose --model mlp or allconv, register a form",
    ),
    "a model of blocks": (
        ["--model", "resnet8", "--stages", "4"],
        "stage 1: unit 'stem' has no closed form (Stem): ",
    ),
    "a head without one": (
        ["--model", "mlp", "--stages", "6", "--head", "mlp"],
        "stage 1: head 'mlp' has no closed form (MLPHead): with --bp-free choose --head linear",
    ),
    "a classifier without one": (
        ["--model", "OWN:deep_classifier", "--stages", "1"],
        "stage 1: the model's classifier has no closed form (GELU): make it linear",
    ),
    "back-propagation": (
        ["--model", "mlp", "--objective", "bp"],
        "--objective bp: --bp-free trains stages without back-propagation, by --objective greedy or",
    ),
    "double backward": (
        ["--model", "mlp", "--stages", "6", "--objective", "sgr", "--reconcile", "exact"],
        "--reconcile exact differentiates twice by autograd: with --bp-free choose --reconcile "
        "first-order",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_is_said_in_one_line_before_training(
    case: str, tmp_path: Path, own_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = ERRORS[case]
    arguments = [argument.replace("OWN", str(own_models)) for argument in arguments]
    assert cli.run(["train", *arguments, "--bp-free", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pipelocal: error: {expected}")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
