"""Small stages whose layers can be perturbed, with a batch, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from pipelocal.models.node_layer import NodeLayer, probed
from pipelocal.models.rnn import ReadOut, TanhRecurrent
from pipelocal.objective import ANP
from pipelocal.objective.anp import Perturbing
from pipelocal.seeding import seeded
from pipelocal.stage.stage import Stage
from pipelocal.tasks import Regression
from tests.objective.stages import gradients, make_stage

ROWS, STEPS, INPUTS, UNITS, OUTPUTS = 2, 3, 4, 3, 2


class Prescribed(Perturbing):
    """Takes the given noise instead of drawing it."""

    def __init__(self, options: ANP, noise: list[Tensor]) -> None:
        super().__init__(options)
        self._left = list(noise)

    def _drawn(self, like: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        found = self._left.pop(0)
        assert found.shape == like.shape
        return found


class Case:
    """A body and a head of some layers with a batch of regression, in float64."""

    def __init__(self, body: nn.Module, head: nn.Module, x: Tensor, target: Tensor) -> None:
        self.body, self.head = body.double(), head.double()
        self.x, self.target = x.double(), target.double()
        for layer in (*body.modules(), *head.modules()):
            for name, buffer in layer.named_buffers(recurse=False):
                if "decorrelation" in name:
                    buffer.add_(0.3 * torch.randn_like(buffer))

    def stage(self, objective: Any, task: Any = None, lr: float = 0.1) -> Stage:
        stage = make_stage(self.body, self.head, objective=objective, lr=lr)
        stage.task = Regression() if task is None else task
        stage._loss_of = stage.task.loss
        return stage

    def gradients(self, objective: Any) -> list[Tensor]:
        """What a stage with this objective has after one batch, of body and head."""
        for parameter in (*self.body.parameters(), *self.head.parameters()):
            parameter.grad = None
        stage = self.stage(objective)
        stage.forward(self.x)
        stage.output_gradient(self.target)
        stage.reconcile(None)
        return [*gradients(stage).values()]

    def layers(self) -> list[NodeLayer]:
        """All layers, in the order in which they run."""
        parts = (*self.body.modules(), self.head)
        return [part for part in parts if isinstance(part, NodeLayer)]

    def loss(self) -> Tensor:
        """The mean squared error."""
        error: Tensor = self.head(self.body(self.x)) - self.target
        return error.square().mean()

    def exact(self) -> list[Tensor]:
        """The gradients of the loss by autograd."""
        loss = self.loss()
        return list(torch.autograd.grad(loss, [*self.body.parameters(), *self.head.parameters()]))

    def received(self) -> list[Tensor]:
        """What the units of each layer receive."""
        with torch.no_grad(), probed(self.body, self.head) as passes:
            self.head(self.body(self.x))
        return [done.received for done in passes.values()]


def linear_layers() -> Case:
    """Two linear layers: the loss is quadratic in what their units receive."""
    with seeded(0, "anp"):
        return Case(
            nn.Sequential(ReadOut(INPUTS, UNITS, last=False)),
            ReadOut(UNITS, OUTPUTS, last=False),
            torch.randn(ROWS, STEPS, INPUTS),
            torch.randn(ROWS, STEPS, OUTPUTS),
        )


def one_layer() -> Case:
    """A single layer with a loss at the last step."""
    with seeded(0, "anp"):
        return Case(
            nn.Sequential(nn.Identity()),
            ReadOut(INPUTS, UNITS, last=True),
            torch.randn(ROWS, STEPS, INPUTS),
            torch.randn(ROWS, UNITS),
        )


def recurrent(*, last: bool = False, truncated: bool = False) -> Case:
    """Two recurrent layers and a read-out."""
    with seeded(0, "anp"):
        return Case(
            nn.Sequential(
                TanhRecurrent(INPUTS, UNITS, truncated=truncated),
                TanhRecurrent(UNITS, UNITS, truncated=truncated),
            ),
            ReadOut(UNITS, OUTPUTS, last=last),
            torch.randn(ROWS, STEPS, INPUTS),
            torch.randn(ROWS, OUTPUTS) if last else torch.randn(ROWS, STEPS, OUTPUTS),
        )


def along_each(shapes: list[torch.Size]) -> Iterator[list[Tensor]]:
    """Noise on one step and unit of one layer at a time, in all rows; once with each sign."""
    for place, shape in enumerate(shapes):
        for step, unit in product(range(shape[1]), range(shape[2])):
            for sign in (1.0, -1.0):
                noise = [torch.zeros(each, dtype=torch.float64) for each in shapes]
                noise[place][:, step, unit] = sign
                yield noise


def close(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-12) -> bool:
    return all(
        torch.allclose(one, two, rtol=tolerance, atol=tolerance)
        for one, two in zip(found, wanted, strict=True)
    )


def mean_of(parts: list[list[Tensor]], factor: float = 1.0) -> list[Tensor]:
    return [factor * torch.stack(each).mean(0) for each in zip(*parts, strict=True)]
