"""Optimizers by name, and the learning rate from the first step to the last."""

import pytest
import torch
from torch import nn

from pipelocal.errors import UserError
from pipelocal.stage.lr_schedule import LR_SCHEDULES, learning_rate_factor
from pipelocal.stage.optimizers import OPTIMIZERS

WEIGHT = [("w", nn.Parameter(torch.zeros(1)))]


def _factors(name: str, *, total: int, warmup: int) -> list[float]:
    factor = learning_rate_factor(LR_SCHEDULES.get(name), total_steps=total, warmup_steps=warmup)
    return [factor(step) for step in range(total + 1)]


def test_constant() -> None:
    assert _factors("constant", total=5, warmup=0) == [1.0] * 6


def test_cosine_from_one_to_zero() -> None:
    factors = _factors("cosine", total=8, warmup=0)
    assert factors[0] == 1.0
    assert factors[4] == pytest.approx(0.5)
    assert factors[8] == pytest.approx(0.0, abs=1e-15)
    assert factors[2] == pytest.approx(0.5 + 0.5 * 0.5**0.5)
    assert factors == sorted(factors, reverse=True)
    assert min(factors[:8]) > 0  # every step that is taken moves the weights


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_warmup_rises_linearly_to_the_peak(name: str) -> None:
    factors = _factors(name, total=10, warmup=4)
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    end = {"constant": 1.0, "cosine": 0.0}[name]
    assert factors[10] == pytest.approx(end, abs=1e-15)
    assert factors[5:] == sorted(factors[5:], reverse=True)
    if name == "cosine":
        assert factors[7] == pytest.approx(0.5)


@pytest.mark.parametrize("warmup", [5, 8])
def test_warmup_as_long_as_the_training(warmup: int) -> None:
    factors = _factors("cosine", total=5, warmup=warmup)
    assert factors[:5] == pytest.approx([(step + 1) / (warmup + 1) for step in range(5)])


def test_past_the_end_the_schedule_stays_there() -> None:
    factor = learning_rate_factor(LR_SCHEDULES.get("cosine"), total_steps=4, warmup_steps=0)
    assert factor(9) == factor(4) == pytest.approx(0.0, abs=1e-15)


def test_through_the_scheduler() -> None:
    optimizer = OPTIMIZERS.get("sgd")(
        [("w", nn.Parameter(torch.zeros(1)))], lr=0.4, weight_decay=0.0, momentum=0.0
    )
    factor = learning_rate_factor(LR_SCHEDULES.get("cosine"), total_steps=6, warmup_steps=2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.4 * factor(step) for step in range(6)])
    assert rates[2] == 0.4
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-15)


def test_sgd() -> None:
    optimizer = OPTIMIZERS.get("sgd")(
        [("w", nn.Parameter(torch.zeros(1)))], lr=0.3, weight_decay=0.01, momentum=0.8
    )
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.3, 0.01, 0.8)


def test_adamw() -> None:
    optimizer = OPTIMIZERS.get("adamw")(
        [("w", nn.Parameter(torch.zeros(1)))], lr=0.3, weight_decay=0.01, momentum=0.8
    )
    assert type(optimizer) is torch.optim.AdamW
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.3, 0.01, (0.8, 0.999))


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"unknown optimizer 'adam'.*did you mean 'adamw'"):
        OPTIMIZERS.get("adam")
    with pytest.raises(UserError, match=r"unknown schedule 'cosin'.*did you mean 'cosine'"):
        LR_SCHEDULES.get("cosin")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_fused_step_is_the_same_step_up_to_rounding_and_repeats_itself(name: str) -> None:
    def trained(*, fused: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(7, 9, generator=generator))
        optimizer = OPTIMIZERS.get(name)(
            [("w", weight)], lr=0.1, weight_decay=0.01, momentum=0.9, fused=fused
        )
        for _ in range(5):
            weight.grad = torch.randn(7, 9, generator=generator)
            optimizer.step()
        assert (optimizer.defaults["fused"] is True) == fused
        return weight.detach()

    assert torch.equal(trained(fused=True), trained(fused=True))
    torch.testing.assert_close(trained(fused=True), trained(fused=False))
