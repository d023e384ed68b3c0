"""``--checkpoint-activations``: the same bits from less memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.live_bytes import LiveBytes
from pipelocal import cli
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.resolve import blueprint_of
from pipelocal.errors import UserError
from pipelocal.run.blueprint import Blueprint
from pipelocal.stage.options import ComputeOptions
from pipelocal.stage.recompute import RecomputedBody
from pipelocal.stage.replay import copies_of_buffers
from pipelocal.stage.stage import Stage
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, train_alone

OBJECTIVES: list[dict[str, Any]] = [
    {"objective": "greedy"},
    {"reconcile_fraction": 0.5},
    {"reconcile_fraction": 1.0},
    {"autocast": "bf16"},
]


def a_stage(units: int | None, **options: Any) -> tuple[Stage, Blueprint]:
    """The second of two stages of a ResNet."""
    config = TrainConfig(
        model="resnet20",
        data="synthetic",
        stages=2,
        objective=options.pop("objective", "sgr"),
        checkpoint_activations=units,
        **options,
    )
    validate(config)
    blueprint = blueprint_of(config)
    device = torch.device("cpu")
    return blueprint.build_stage(2, device=device, total_steps=8), blueprint


def trained(stage: Stage, x: Tensor, steps: int = 4) -> dict[str, Any]:
    """The stage's state after some batches, every other one reconciled if it can be."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        delta = torch.randn(x.shape, generator=generator) / len(x)
        wanted = stage.wants_delta and step % 2 == 0
        stage.step(x, torch.arange(len(x)) % 10, delta if wanted else None)
    return stage.state_dict()


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b or isinstance(a, list)


@pytest.mark.parametrize("units", [1, 2, 100])
@pytest.mark.parametrize("options", OBJECTIVES, ids=str)
def test_same_bits(units: int, options: dict[str, Any]) -> None:
    """Parameters, optimizer, and BatchNorm's statistics, which a second forward pass would move."""
    states = []
    for kept in (None, units):
        stage, blueprint = a_stage(kept, **options)
        x = torch.randn(4, *blueprint.output_shape(1), generator=torch.Generator().manual_seed(0))
        states.append(trained(stage, x))
    assert any("running_mean" in name for name in states[0]["body"])
    assert_equal(*states)


def test_same_dropout() -> None:
    states = []
    for units in (None, 1):
        torch.manual_seed(0)
        body = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)) for _ in range(3)))
        head = nn.Linear(6, 10)
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1)
        stage = Stage(
            number=2,
            body=body,
            head=head,
            objective=a_stage(None)[0].objective,
            optimizer=optimizer,
            compute=ComputeOptions(checkpoint_activations=units),
        )
        states.append(trained(stage, torch.ones(8, 6)))
    assert_equal(*states)


def test_buffers_move_once_and_only_where_they_may() -> None:
    norm = nn.BatchNorm1d(3)
    norms = nn.Sequential(norm, nn.Linear(3, 3))
    body = RecomputedBody(norms, units=1)
    x = torch.randn(8, 3)
    for run in (body, lambda x: body.replay(x, copies_of_buffers(norms))):
        torch.autograd.backward(run(x).sum())
        assert norm.num_batches_tracked is not None
        assert norm.num_batches_tracked.item() == 1


@pytest.mark.parametrize("objective", ["greedy", "sgr"])
def test_peak_memory_falls(objective: str) -> None:
    """Live bytes of whole steps, and what the stage reports of itself."""
    live, kept = [], []
    for units in (None, 1):
        stage, blueprint = a_stage(units, objective=objective)
        x = torch.randn(32, *blueprint.output_shape(1))
        with LiveBytes() as counter:
            trained(stage, x, steps=2)
        live.append(counter.peak)
        kept.append(stage.kept_bytes)
    assert live[1] < 0.65 * live[0]
    assert kept[0] == 0
    assert 0 < kept[1] < live[1]


def test_the_run_reports_the_lower_peak(tmp_path: Path) -> None:
    peaks = []
    for name, more in (("all", []), ("few", ["--checkpoint-activations", "1"])):
        out = tmp_path / name
        arguments = ["train", "--model", "resnet20", "--data", "synthetic", "--stages", "2"]
        arguments += ["--train-samples", "32", "--batch-size", "32", "--epochs", "1", "--plain"]
        assert cli.run([*arguments, "--out", str(out), *more]) == 0
        summary = json.loads((out / "summary.json").read_text())
        peaks.append([stage["peak_memory_bytes"] for stage in summary["stages"]])
    assert all(few < 0.7 * whole for whole, few in zip(*peaks, strict=True))


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    options = ["--stages", "4", "--max-steps", "12", "--checkpoint-activations", "1"]
    alone = train_alone(options, tmp_path / "alone")
    ranks = tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *options, "--out", str(ranks)], 2)
    assert_same_bits(alone, ranks)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"checkpoint_activations": 0}, "--checkpoint-activations 0: must be at least 1"),
        ({"checkpoint_activations": 1, "bp_free": True}, "of which --bp-free has none"),
        (
            {"checkpoint_activations": 1, "objective": "sgr", "reconcile": "exact"},
            "differentiates twice",
        ),
        ({"checkpoint_activations": 1, "compile": "eager"}, "leave one of them out"),
    ],
)
def test_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        validate(TrainConfig(**options))
