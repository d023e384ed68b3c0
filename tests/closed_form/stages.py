"""Stages of one layer twice over: by autograd, and by closed forms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelocal.closed_form import ClosedFormStage
from pipelocal.models.layers import PooledLinear
from pipelocal.objective import FirstOrderReconciliation, Greedy, Reconciliation
from pipelocal.seeding import seeded
from pipelocal.stage.stage import Stage

Objectives = dict[str, Callable[[], Greedy | FirstOrderReconciliation]]


def reconciling(**settings: Any) -> FirstOrderReconciliation:
    """SGR of first order with a weight that is no bystander."""
    return FirstOrderReconciliation(Reconciliation(weight=0.5, **settings))


OBJECTIVES: Objectives = {
    "greedy": Greedy,
    "sgr on all rows": reconciling,
    "sgr on some rows": lambda: reconciling(fraction=0.5),
}

ROWS, CLASSES = 9, 4


@dataclass
class Pair:
    """Two stages with the same weights, with a batch for them in float64."""

    autograd: Stage
    closed: ClosedFormStage
    x: Tensor
    target: Tensor
    delta: Tensor

    @property
    def both(self) -> tuple[Stage, ClosedFormStage]:
        """The stage that autograd trains, and the other one."""
        return self.autograd, self.closed


def make_pair(body: str, objective: str) -> Pair:
    """Both stages, and a batch.

    Args:
        body: ``dense`` or ``conv``.
        objective: a key of :data:`OBJECTIVES`.
    """
    with seeded(0, "closed form"):
        if body == "dense":
            layers: list[nn.Module] = [nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Tanh()]
            x = torch.randn(ROWS, 3, 4)
        else:
            conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
            layers = [conv, nn.BatchNorm2d(6), nn.ReLU()]
            x = torch.randn(ROWS, 3, 6, 6)
        unit, made_head = nn.Sequential(*layers).double(), PooledLinear((6,), CLASSES).double()
        target = torch.randint(CLASSES, (ROWS,))
        delta = torch.randn(x.shape).double() / ROWS
    stages = [
        kind(
            number=2,
            body=nn.Sequential(module),
            head=head_module,
            objective=OBJECTIVES[objective](),
            optimizer=torch.optim.SGD(
                [p for p in (*module.parameters(), *head_module.parameters()) if p.requires_grad],
                lr=0.1,
                momentum=0.9,
            ),
        )
        for kind, module, head_module in (
            (Stage, unit, made_head),
            (ClosedFormStage, copy.deepcopy(unit), copy.deepcopy(made_head)),
        )
    ]
    closed = stages[1]
    assert isinstance(closed, ClosedFormStage)
    return Pair(stages[0], closed, x.double(), target, delta)
