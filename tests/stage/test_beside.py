"""Stages whose input or output is several tensors: skips and masks beside the main one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipelocal.objective import ExactReconciliation, FirstOrderReconciliation, Greedy, Objective
from pipelocal.objective.distances import squared
from pipelocal.objective.reconciliation import Reconciliation
from pipelocal.stage.options import ComputeOptions
from pipelocal.stage.stage import Stage
from pipelocal.tasks import Classification

ROWS, WIDTH, CLASSES = 5, 6, 3
Three = tuple[Tensor, Tensor, Tensor]


class Makes(nn.Module):
    """Passes on its own output, its own input as a skip, and the mask as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, payload: tuple[Tensor, ...]) -> Three:
        x, *_, mask = payload
        hidden = self.linear(x).tanh()
        return hidden * mask.unsqueeze(1), hidden.square(), mask


class Uses(nn.Module):
    """A classifier that reads all that is passed on."""

    takes_beside = True

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, payload: Three) -> Tensor:
        x, skip, mask = payload
        logits: Tensor = self.linear(torch.cat([x, skip], 1))
        return logits + mask.unsqueeze(1)


def stage_of(objective: Objective, **compute: int) -> Stage:
    torch.manual_seed(0)
    body, head = nn.Sequential(Makes(), Makes()).double(), Uses().double()
    return Stage(
        number=2,
        body=body,
        head=head,
        objective=objective,
        optimizer=torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1),
        compute=ComputeOptions(**compute),  # type: ignore[arg-type]
    )


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, delta = torch.randn(2, ROWS, WIDTH, dtype=torch.float64, generator=generator)
    return x, torch.tensor([True, True, False, True, False]), torch.arange(ROWS) % CLASSES, delta


def gradients(stage: Stage) -> list[Tensor]:
    parameters = [*stage.body.parameters(), *stage.head.parameters()]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


def expected(weight: float) -> list[Tensor]:
    """Gradients of the whole stage by autograd, with the reconciliation term by double backward."""
    stage = stage_of(Greedy())
    x, mask, target, delta = batch()
    x.requires_grad_()
    loss = Classification().loss(stage.head(stage.body((x, mask))), target).mean
    (eta,) = torch.autograd.grad(loss, x, create_graph=True)
    total = loss + weight * squared(ROWS * eta, ROWS * delta) if weight else loss
    total.backward()  # type: ignore[no-untyped-call]
    return gradients(stage)


@pytest.mark.parametrize("compute", [{}, {"checkpoint_activations": 1}])
def test_a_head_that_reads_what_lies_beside_trains_the_body_through_it(
    compute: dict[str, int],
) -> None:
    stage = stage_of(Greedy(), **compute)
    x, mask, target, _ = batch()
    out = stage.forward(x, (mask,))
    skip, passed = stage.beside
    assert not skip.requires_grad
    assert torch.equal(passed, mask)
    assert passed.data_ptr() != mask.data_ptr(), "the memory of what came in is used again"
    stage.output_gradient(target)
    stage.reconcile(None)
    torch.testing.assert_close(gradients(stage), expected(0), rtol=1e-12, atol=0)
    stage.update()
    assert stage.beside == ()
    evaluated, _ = stage_of(Greedy()).evaluate(x, (mask,))
    assert torch.equal(evaluated, out)


OBJECTIVES: dict[str, tuple[Callable[[Reconciliation], Objective], float]] = {
    "exact": (ExactReconciliation, 1e-12),
    "first-order": (FirstOrderReconciliation, 1e-3),
}


@pytest.mark.parametrize("form", OBJECTIVES)
def test_reconciliation_keeps_what_lies_beside(form: str) -> None:
    build, tolerance = OBJECTIVES[form]
    weight = 0.1
    stage = stage_of(build(Reconciliation(distance=squared, weight=weight)))
    x, mask, target, delta = batch()
    stage.forward(x, (mask,), reconciled=True)
    stage.output_gradient(target)
    stage.reconcile(delta)
    torch.testing.assert_close(gradients(stage), expected(weight), rtol=tolerance, atol=tolerance)
