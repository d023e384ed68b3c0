"""The cap of the cosine, and reconciliation whose weight is zero."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pipelocal.objective import SGR, WEIGHT_SCHEDULES
from pipelocal.objective.delta_encoding import whole_delta
from pipelocal.objective.local import Objective, Place
from pipelocal.objective.residual import Residual
from pipelocal.stage.stage import Stage

ZERO = torch.zeros(())


def _cap(eta: Tensor) -> float:
    flat = eta.flatten(1)
    return float(Residual.of(ZERO, flat, flat, whole=eta).cap)


@pytest.mark.parametrize("shape", [(5, 6, 4, 3), (5, 12, 6)])
def test_no_cosine_with_a_gradient_that_is_even_over_space_exceeds_the_cap(
    shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    eta = torch.randn(shape, dtype=torch.float64) + 0.3
    places = (2, 3) if len(shape) == 4 else (1,)
    mean = eta.mean(places, keepdim=True).expand_as(eta)
    best = Residual.of(ZERO, eta.flatten(1), mean.flatten(1), whole=eta)
    assert float(best.cap) == pytest.approx(float(best.cosine))
    other = torch.randn_like(eta).mean(places, keepdim=True).expand_as(eta)
    worse = Residual.of(ZERO, eta.flatten(1), other.flatten(1), whole=eta)
    assert float(worse.cosine) < float(worse.cap) < 1


def test_the_cap_at_its_ends() -> None:
    even = torch.randn(3, 4, 1, 1).expand(3, 4, 5, 5)
    assert _cap(even) == pytest.approx(1)
    assert _cap(1e30 * even) == pytest.approx(1)
    assert _cap(torch.zeros(3, 4, 5, 5)) == 0
    assert math.isnan(_cap(torch.randn(3, 4)))  # no places


def test_late_is_off_in_the_first_half() -> None:
    late = WEIGHT_SCHEDULES.get("late")
    assert [late(progress) for progress in (0.0, 0.49, 0.5, 1.0)] == [0, 0, 1, 1]


def test_a_weight_of_zero_measures_and_changes_nothing() -> None:
    weights = []
    for weight in (0.0, None):
        stage = _stage(SGR(weight=weight or 0.0, every=1, fraction=1.0))
        x, target = torch.randn(6, 4, generator=_seeded()), torch.arange(6) % 3
        delta = None if weight is None else torch.randn(6, 4, generator=_seeded())
        metrics = stage.step(x, target, delta).metrics
        assert (metrics.residual is None) == (weight is None)
        weights.append(torch.cat([p.detach().flatten() for p in stage.body.parameters()]))
    assert torch.equal(*weights)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _stage(recipe: SGR) -> Stage:
    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 3)
    place = Place(
        number=2,
        stages=2,
        input_shape=(4,),
        output_shape=(5,),
        total_steps=10,
        previous_delta=whole_delta((4,)),
    )
    objective: Objective = recipe.for_stage(place)
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    return Stage(number=2, body=body, head=head, objective=objective, optimizer=optimizer)
