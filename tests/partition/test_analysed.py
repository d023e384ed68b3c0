"""Costs by analysis on the meta device, against figures that others published and exact counts."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pipelocal import cli
from pipelocal.config import PlanConfig, TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.errors import UserError
from pipelocal.partition.analysed import Roofline
from pipelocal.partition.measured import Stopwatch
from pipelocal.plan.plan import planned_input
from pipelocal.run.costs import cost_model

META = torch.device("meta")


@pytest.mark.parametrize(
    # Billions of multiplications with their additions for one image, from torchvision's own tables.
    ("model", "published"),
    [
        ("resnet18", 1.814),
        ("vit_b_16", 17.564),
        pytest.param("resnet50", 4.089, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 4.456, marks=pytest.mark.slow),
    ],
)
def test_forward_operations_are_those_that_torchvision_publishes(
    model: str, published: float
) -> None:
    config = PlanConfig(model=model, batch_size=1, objective="greedy")
    blueprint = blueprint_of(config.train_config(), info=planned_input(config))
    counter = Roofline(flops=2e9, memory_bytes_per_s=math.inf)
    profile = cost_model(blueprint, config.train_config(), counter, batch_size=1).profile
    found = sum(cost.forward_s for cost in [*profile.units, profile.heads[-1]])
    assert found == pytest.approx(published, rel=2e-3)


def test_a_pass_takes_the_longer_of_computing_and_moving() -> None:
    layer = nn.Linear(100, 50, bias=False, device=META)
    x = torch.empty(8, 100, device=META, requires_grad=True)
    computing = Roofline(flops=1.0, memory_bytes_per_s=math.inf)
    operations = 2 * 8 * 100 * 50
    assert computing.seconds_of_pass(layer, x, None, reconcile=False) == (
        operations,
        2 * operations,  # the gradients of the weight and of the input
    )
    without = computing.seconds_of_pass(layer, x.detach(), None, reconcile=False)
    assert without == (operations, operations)
    moving = Roofline(flops=math.inf, memory_bytes_per_s=1.0)
    moved = 4 * (8 * 100 + 100 * 50 + 8 * 50)
    assert moving.seconds_of_pass(layer, x, None, reconcile=False) == (moved, 2 * moved)


@pytest.mark.parametrize("objective", [pytest.param("greedy", marks=pytest.mark.slow), "sgr"])
def test_bytes_are_those_that_are_measured(objective: str) -> None:
    config = TrainConfig(model="resnet20", objective=objective, batch_size=4, optimizer="adamw")
    blueprint = blueprint_of(config)
    run, analysed = (
        cost_model(blueprint, config, meter, batch_size=4).profile
        for meter in (
            Stopwatch(device=torch.device("cpu"), repeats=1),
            Roofline(flops=1e12, memory_bytes_per_s=1e12),
        )
    )
    for name in ("saved", "reconcile", "parameter", "buffer", "optimizer", "output"):
        pairs = zip([*run.units, *run.heads], [*analysed.units, *analysed.heads], strict=True)
        for measured, counted in pairs:
            assert getattr(counted, f"{name}_bytes") == getattr(measured, f"{name}_bytes"), name


def test_the_plan_of_a_device_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--model", "gpt", "--objective", "greedy", "--device", "meta", "--json"]
    seconds = []
    for flops in ("1TFLOPS", "2TFLOPS"):
        rates = ["--device-flops", flops, "--device-bandwidth", "1000TB/s"]
        assert cli.run([*command, *rates]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["device"] == "meta"
        seconds.append(sum(stage["seconds"] for stage in plan["stages"]))
    assert seconds[0] == pytest.approx(2 * seconds[1], rel=1e-2)


def test_what_cannot_be_differentiated_twice_is_named() -> None:
    config = TrainConfig(model="gpt", data="text", head="linear", batch_size=2)
    config = replace(config, objective="sgr", reconcile="exact")
    blueprint = blueprint_of(config)
    with pytest.raises(UserError, match=r"unit 'block1' cannot be differentiated twice"):
        cost_model(
            blueprint, config, Stopwatch(device=torch.device("cpu"), repeats=1), batch_size=2
        )
