"""``--autocast bf16``: body and head compute in bfloat16, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelocal import cli
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.stage.stage import Stage
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, run_state, train_alone

STEPS = ["--stages", "4", "--max-steps", "25", "--autocast", "bf16", "--objective", "sgr"]


def a_stage(**options: Any) -> tuple[Stage, Tensor, Tensor]:
    """The second of four, and a batch for it."""
    config = TrainConfig(autocast="bf16", head="linear", **{"objective": "sgr"} | options)
    blueprint = blueprint_of(config)
    stage = blueprint.build_stage(2, device=torch.device("cpu"), total_steps=10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, *blueprint.output_shape(1), generator=generator)
    return stage, x, torch.arange(8)


def dtypes_of(stage: Stage, kind: type[nn.Module]) -> list[torch.dtype]:
    """Filled with the dtype of what each layer of a kind makes, as it makes it."""
    seen: list[torch.dtype] = []
    layers = [m for part in (stage.body, stage.head) for m in part.modules() if type(m) is kind]
    assert layers
    for layer in layers:
        layer.register_forward_hook(lambda _layer, _x, out: seen.append(out.dtype))
    return seen


@pytest.mark.parametrize(("kind", "layers"), [(nn.Linear, 1), (nn.Conv2d, 2)])
def test_linear_layers_and_convolutions_run_in_bf16(kind: type[nn.Module], layers: int) -> None:
    stage, x, target = a_stage()
    seen = dtypes_of(stage, kind)
    stage.step(x, target)
    assert seen == [torch.bfloat16] * layers
    stage.evaluate(x)
    assert seen == [torch.bfloat16] * 2 * layers


def test_the_passes_of_reconciliation_run_in_float32() -> None:
    stage, x, target = a_stage()
    seen = dtypes_of(stage, nn.Linear)
    stage.step(x, target, torch.randn_like(x) / 8)
    assert seen == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("options", [{"objective": "greedy"}, {}])
def test_parameters_optimizer_and_all_that_leaves_are_float32(options: dict[str, Any]) -> None:
    stage, x, target = a_stage(**options)
    delta = torch.randn_like(x) / 8 if stage.wants_delta else None
    result = stage.step(x, target, delta)
    output, logits = stage.evaluate(x)
    state = [v for values in stage.optimizer.state.values() for v in values.values()]
    parameters = [*stage.body.parameters(), *stage.head.parameters()]
    made = [result.output, result.output_gradient, result.metrics.loss, output, logits]
    floats = [t for t in (*made, *state, *parameters) if isinstance(t, Tensor)]
    assert {t.dtype for t in floats} == {torch.float32}


@pytest.mark.parametrize(
    "options",
    [
        [],
        pytest.param(["--wire", "bf16"], marks=pytest.mark.slow),
        pytest.param(["--objective", "greedy"], marks=pytest.mark.slow),
    ],
)
def test_ranks_equal_one_process(tmp_path: Path, options: list[str]) -> None:
    arguments = [*STEPS, "--reconcile-every", "3", *options]
    alone = train_alone(arguments, tmp_path / "alone")
    for size in (2, 4):
        out = tmp_path / f"ranks-{size}"
        run_ranks(tmp_path / f"log-{size}", ["train", *arguments, "--out", str(out)], size)
        assert_same_bits(alone, out)


@pytest.mark.parametrize("options", [pytest.param([], marks=pytest.mark.slow), ["--wire", "bf16"]])
def test_it_trains(tmp_path: Path, options: list[str]) -> None:
    arguments = ["--stages", "4", "--epochs", "4", "--autocast", "bf16", *options]
    run = train_alone(arguments, tmp_path / "run")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for stage in range(1, 5):
        losses = [r["loss"] for r in records if r["event"] == "train" and r["stage"] == stage]
        assert losses[-1] < (0.95 if stage == 1 else 0.7) * losses[0]
    assert json.loads((run / "summary.json").read_text())["eval_accuracy"] > 0.9
    dtypes = {
        value.dtype
        for value in run_state(run).values()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    assert dtypes == {torch.float32}


def test_it_is_another_training_than_in_float32(tmp_path: Path) -> None:
    """The comparisons above can fail."""
    mixed = train_alone(STEPS, tmp_path / "mixed")
    plain = train_alone(STEPS[:-2], tmp_path / "plain")
    with pytest.raises(AssertionError):
        assert_same_bits(mixed, plain)


def test_evaluate_repeats_the_trainings_own_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_alone([*STEPS, "--wire", "int8"], tmp_path / "run")
    capsys.readouterr()
    assert cli.run(["evaluate", str(run), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [r for r in lines if r["event"] == "evaluate"][-4:]
    assert [s["loss"] for s in again["stages"]] == [r["loss"] for r in last]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--autocast", "fp16"], "--autocast fp16: choose one of bf16"),
        (["--autocast", "bf16", "--bp-free"], "leave out --bp-free or --autocast"),
        (
            ["--autocast", "bf16", "--objective", "sgr", "--reconcile", "exact"],
            "choose --reconcile first-order",
        ),
    ],
)
def test_what_cannot_work_is_one_line(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", *options, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
