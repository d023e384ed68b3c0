"""delta carries the label; a stage must not learn to read it.

A frozen random body behind labels that were drawn at random: nothing about a sample's label is in
its features, so a head can only learn the few labels by heart that its parameters have room for.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, autograd, nn

from pipelocal.objective import DISTANCES
from pipelocal.seeding import seeded
from tests.objective.stages import Form, make_stage, sgr

ROWS, FEATURES, CLASSES, STEPS = 256, 12, 4, 150


def a_problem() -> tuple[Tensor, Tensor, Tensor]:
    """Samples, labels that have nothing to do with them, and the true delta of a stage before."""
    x, target = torch.randn(ROWS, FEATURES), torch.randint(CLASSES, (ROWS,))
    head = nn.Linear(FEATURES, CLASSES)
    leaf = x.clone().requires_grad_()
    (delta,) = autograd.grad(F.cross_entropy(head(leaf), target), leaf)
    return x, target, delta


def final_loss(form: Form | None, *, fed: float = 0.0, shuffled: bool = False) -> float:
    """Of a head behind a frozen body, after training on one batch.

    Args:
        form: how it reconciles; None for not at all.
        fed: how much of delta, per sample, is taken off the input: the leak.
        shuffled: whether delta belongs to other samples, whose labels are no better than random ones.
    """
    with seeded(0, "leak"):
        x, target, delta = a_problem()
        body = nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh()).requires_grad_(False)
        head = nn.Linear(32, CLASSES)
        objective = sgr(DISTANCES.get("cosine"), 1.0, form=form) if form else None
        stage = make_stage(body, head, objective=objective, lr=0.5)
        x = x - fed * ROWS * delta
        delta = delta.roll(1, 0) if shuffled else delta
        loss = torch.tensor(0.0)
        for _ in range(STEPS):
            loss = stage.step(x, target, delta if form else None).metrics.loss
    return float(loss)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("form", ["exact", "first-order"])
def test_reconciliation_does_not_lower_the_loss_of_random_labels(
    form: Form, shuffled: bool
) -> None:
    """At a large weight: the local loss cannot get better than what is in x allows."""
    assert final_loss(form, shuffled=shuffled) > final_loss(None) - 0.01


def test_a_stage_that_is_fed_delta_does() -> None:
    """What the test above would catch: with delta in its input the head reads the labels."""
    assert final_loss(None, fed=3.0) < 0.5 * final_loss(None)
