"""``--step-early``: the same bits while fewer gradients live at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.live_bytes import LiveBytes
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.resolve import blueprint_of
from pipelocal.errors import UserError
from pipelocal.run.blueprint import Blueprint
from pipelocal.stage.early_step import READY_BYTES, EarlyStep
from pipelocal.stage.stage import Stage
from tests.launching import run_ranks
from tests.stage.test_recompute import assert_equal, trained
from tests.test_transparency import assert_same_bits, train_alone

SGR = {"objective": "sgr"}


def a_stage(*, early: bool, **options: Any) -> tuple[Stage, Blueprint]:
    """The second of two stages of an MLP, or of another model."""
    config = TrainConfig(stages=2, step_early=early, warmup_steps=3, **options)
    validate(config)
    blueprint = blueprint_of(config)
    device = torch.device("cpu")
    return blueprint.build_stage(2, device=device, total_steps=8), blueprint


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, SGR, {**SGR, "reconcile": "exact"}, {**SGR, "autocast": "bf16"}],
    ids=str,
)
def test_same_bits(optimizer: str, fused: bool, options: dict[str, Any]) -> None:
    """With momentum, weight decay and a schedule; batches that are reconciled in between."""
    states = []
    for early in (False, True):
        stage, blueprint = a_stage(early=early, optimizer=optimizer, fused=fused, **options)
        x = torch.randn(8, *blueprint.output_shape(1), generator=torch.Generator().manual_seed(0))
        states.append(trained(stage, x, steps=5))
    assert_equal(*states)


def test_a_frozen_stage_stays() -> None:
    stage, blueprint = a_stage(early=True)
    x = torch.randn(8, *blueprint.output_shape(1))
    trained(stage, x, steps=2)
    before = {name: value.clone() for name, value in stage.body.state_dict().items()}
    stage.freeze()
    stage.forward(x)
    stage.output_gradient(torch.arange(8))
    stage.update()
    assert_equal(stage.body.state_dict(), before)


def test_gradients_do_not_all_live_at_once() -> None:
    """Few rows, so that parameters and their gradients are what there is."""
    peaks = []
    for early in (False, True):
        stage, blueprint = a_stage(early=early, objective="greedy", model="gpt", data="text64")
        x = torch.randn(1, *blueprint.output_shape(1))
        target = torch.zeros(1, *blueprint.info.target_shape, dtype=torch.int64)
        stage.step(x, target)  # makes the optimizer's state
        stage.forward(x)
        with LiveBytes() as counter:  # gradients, and what lives for a moment
            stage.output_gradient(target)
            stage.reconcile(None)
        peaks.append(counter.peak)
        stage.update()
    gradients = 4 * sum(p.numel() for p in (*stage.body.parameters(), *stage.head.parameters()))
    assert peaks[0] > gradients
    assert peaks[1] < 0.5 * peaks[0]


def test_a_step_is_given_what_is_ready_alone() -> None:
    """It walked over all parameters for each one, which is quadratic; small gradients share a step."""
    shapes = [READY_BYTES // 4] * 3 + [1] * 2 + [READY_BYTES // 4]
    parameters = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = torch.optim.SGD(
        [{"params": parameters[:4], "lr": 0.5}, {"params": parameters[4:], "lr": 0.25}]
    )
    seen: list[dict[float, int]] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.append({group["lr"]: len(group["params"]) for group in optimizer.param_groups})

    early = EarlyStep(optimizer, parameters)
    optimizer.register_step_pre_hook(look)
    for _ in range(2):
        seen.clear()
        early.begin(on=True)
        for parameter in parameters:
            parameter.sum().backward()  # type: ignore[no-untyped-call]
        assert seen == [{0.5: 1}, {0.5: 1}, {0.5: 1}, {0.5: 1, 0.25: 2}]
        assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2]
        assert all(parameter.grad is None for parameter in parameters)
        optimizer.load_state_dict(optimizer.state_dict())  # which makes other groups
    assert [parameter[0].item() for parameter in parameters] == [0.0] * 4 + [0.5] * 2


def test_what_is_small_is_left_to_the_batchs_own_step() -> None:
    held, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([held], lr=0.5)
    early = EarlyStep(optimizer, [held, other])
    for left in (0.5, 0.0):
        early.begin(on=True)
        (held + other).sum().backward()  # type: ignore[no-untyped-call]
        assert held.grad is not None
        optimizer.step()
        optimizer.zero_grad()
        assert (held.item(), other.item()) == (left, 1.0)


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    options = ["--stages", "4", "--max-steps", "20"]
    alone = train_alone(options, tmp_path / "alone")
    ranks = tmp_path / "ranks"
    early = ["train", *options, "--step-early", "--out", str(ranks)]
    run_ranks(tmp_path / "log", early, 2)
    assert_same_bits(alone, ranks)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bp_free": True}, "of which --bp-free has none"),
        ({"measure_bp_gap": 1}, "that --step-early has let go"),
    ],
)
def test_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        validate(TrainConfig(step_early=True, **options))


class Counting(torch.optim.Optimizer):
    """Keeps the number of its steps in its groups."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.1, "k": 0})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            group["k"] += 1


def test_an_optimizer_that_counts_its_steps_is_refused() -> None:
    """It counted several for every batch, and had other bits, in silence."""
    weight = nn.Parameter(torch.ones(READY_BYTES // 4))
    EarlyStep(Counting([weight]), [weight]).begin(on=False)
    weight.sum().backward()  # type: ignore[no-untyped-call]
    weight.grad = None
    early = EarlyStep(Counting([weight]), [weight])
    early.begin(on=True)
    with pytest.raises(UserError, match="Counting counts its steps in its groups"):
        weight.sum().backward()  # type: ignore[no-untyped-call]


def test_a_step_hook_is_refused() -> None:
    """It saw some of the parameters at a time, such as for the length of their gradient."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight])
    optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.raises(UserError, match="the optimizer has a step hook"):
        EarlyStep(optimizer, [weight])


def test_a_gradient_in_parts_is_refused() -> None:
    """A weight in two reentrant checkpoints was updated with each part by itself."""
    weight = nn.Parameter(torch.ones(READY_BYTES // 4))
    early = EarlyStep(torch.optim.Adam([weight]), [weight])
    x = torch.ones(1, requires_grad=True)

    def scaled(x: Tensor) -> Tensor:
        return x * weight.mean()

    once = checkpoint(scaled, x, use_reentrant=True)
    twice = checkpoint(scaled, once, use_reentrant=True)
    early.begin(on=True)
    with pytest.raises(UserError, match="the gradient of a weight comes in parts"):
        twice.sum().backward()
