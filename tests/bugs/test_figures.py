"""Defects of what is told of a run, or made of it, one test each; the docstring gives the cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pipelocal as pl
from pipelocal import cli
from pipelocal.config import ExportConfig
from pipelocal.results.export import export
from pipelocal.telemetry.timeline import Timeline

MODEL = """
import torch
from torch import nn


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x + 5 * self.mean


def centred(input_shape, classes):
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
    return nn.Sequential(first, Centred(), nn.Linear(8, classes))


def double(input_shape, classes):
    return nn.Sequential(nn.Flatten(), Double(), nn.Linear(8, classes))


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, 8, dtype=torch.float64)

    def forward(self, x):
        return self.inner(x.double()).float()
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(MODEL)
    return f"{tmp_path}/own.py"


def test_buffers_that_training_changed_were_lost_in_the_uncut_model(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluations had those with ``persistent=False``; load() and programs had them as built, in silence."""
    run = str(tmp_path / "run")
    options = ["--model", f"{model}:centred", "--stages", "2", "--max-steps", "20", "--out", run]
    assert cli.run(["train", *options, "--plain", "--ema", "0.9", "--head", "linear"]) == 0
    x = torch.rand(5, 1, 8, 8)
    heads = pl.load_with_heads(run)
    loaded: Tensor = pl.load(run)(x)
    torch.testing.assert_close(loaded, heads.all_logits(x)[-1])
    export(ExportConfig(run=run, to=str(tmp_path / "run.pt2")))
    program = torch.export.load(tmp_path / "run.pt2").module()
    torch.testing.assert_close(program(x), loaded)
    averaged = pl.load_with_heads(run, averaged=True)
    torch.testing.assert_close(pl.load(run, averaged=True)(x), averaged.all_logits(x)[-1])
    capsys.readouterr()
    export(ExportConfig(run=run, to=str(tmp_path / "run.pt")))
    assert (
        "has changed 1 buffer(s) with persistent=False, such as 1.mean" in capsys.readouterr().err
    )


def test_a_plan_counted_parameters_as_if_all_had_four_bytes(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--model", f"{model}:double", "--data", "digits", "--stages", "2"]
    assert cli.run([*arguments, "--device", "meta", "--head", "linear", "--json"]) == 0
    stage = json.loads(capsys.readouterr().out)["stages"][1]
    double, single = 64 * 8 + 8, 8 * 10 + 10
    assert stage["parameters"] == double + single
    assert stage["parameter_bytes"] == 8 * double + 4 * single


@pytest.mark.parametrize(("objective", "times"), [("greedy", 1), ("loco", 2)])
def test_what_flows_back_did_not_cross_nodes_in_a_plan(
    capsys: pytest.CaptureFixture[str], objective: str, times: int
) -> None:
    arguments = ["plan", "--model", "mlp", "--data", "digits", "--stages", "2", "--nodes", "2"]
    assert cli.run([*arguments, "--objective", objective, "--device", "meta", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    first, second = plan["stages"]
    assert (second["backward_bytes"] > 0) is (times == 2)
    crossing = first["sent_bytes"] + second["backward_bytes"]
    assert plan["replication"]["crossing_bytes"] == crossing


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_batch_of_a_timeline_took_the_time_of_evaluations(tmp_path: Path, replicas: int) -> None:
    """Its whole span was divided by the number of batches. Here one takes 10 ms, and the evaluation 500."""
    events = []
    numbers = [*range(1, 7), *range(13, 19)]  # between them an evaluation of six batches
    for at, number in enumerate(numbers):
        stage, start = 1 + (at % replicas), 10.0 * at + 500 * (at >= 6)
        args = {"lane": "stage 1", "batch": number, "bytes": 0}
        place = {"ph": "X", "cat": "stage", "pid": stage, "tid": 0, "args": args}
        for name, after in (("receive", 0.0), ("forward", 4.0)):
            long = 1000 * (4.0 if name == "receive" else 6.0)
            events.append({**place, "name": name, "ts": 1000 * (start + after), "dur": long})
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    assert Timeline.of(tmp_path).period_ms == pytest.approx(10.0, rel=0.1)
