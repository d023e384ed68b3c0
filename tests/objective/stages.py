"""Small stages, most of them in float64, where what the mathematics says must hold to many digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pipelocal.models.layers import PooledLinear
from pipelocal.objective import SGR, Greedy, Objective, Place
from pipelocal.objective.delta_encoding import whole_delta
from pipelocal.objective.distances import Distance, squared
from pipelocal.seeding import seeded
from pipelocal.stage.options import ComputeOptions
from pipelocal.stage.stage import PLAIN, Stage

Form = Literal["first-order", "exact"]


class RecordingDistance:
    """A distance that keeps the gradients it is given: the way to see a stage's eta."""

    def __init__(self, distance: Distance = squared) -> None:
        self._distance = distance
        self.eta = torch.empty(0)
        """Per-sample input gradients of the last batch, ``[B, F]``."""
        self.delta = torch.empty(0)

    def __call__(self, eta: Tensor, delta: Tensor) -> Tensor:
        self.eta, self.delta = eta.detach().clone(), delta.detach().clone()
        return self._distance(eta, delta)


def make_stage(
    body: nn.Module,
    head: nn.Module,
    *,
    number: int = 2,
    objective: Objective | None = None,
    lr: float = 0.1,
    momentum: float = 0.0,
    seed: int = 0,
    compute: ComputeOptions = PLAIN,
) -> Stage:
    """A stage with SGD; greedy unless told otherwise."""
    body = body if isinstance(body, nn.Sequential) else nn.Sequential(body)
    parameters = [*body.parameters(), *head.parameters()]
    return Stage(
        number=number,
        body=body,
        head=head,
        objective=objective or Greedy(),
        optimizer=torch.optim.SGD(parameters, lr=lr, momentum=momentum),
        seed=seed,
        compute=compute,
    )


def sgr(distance: Distance, weight: float, *, stage: int = 2, form: Form = "exact") -> Objective:
    """The objective behind ``--objective sgr``, on every batch."""
    recipe = SGR(distance=distance, weight=weight, form=form, every=1, fraction=1.0)
    return recipe.for_stage(place(stage))


def place(number: int) -> Place:
    """Where a stage of four stands, for an objective that does not look at shapes."""
    return Place(
        number=number,
        stages=4,
        input_shape=(),
        output_shape=(),
        total_steps=1,
        previous_delta=whole_delta(()) if number > 1 else None,
    )


def gradients(stage: Stage) -> dict[str, Tensor]:
    """Gradients of all parameters by name, as they stand between reconcile and update."""
    named = [
        (f"{part}.{name}", parameter)
        for part, module in (("body", stage.body), ("head", stage.head))
        for name, parameter in module.named_parameters()
    ]
    found = {}
    for name, parameter in named:
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


def weights(stage: Stage) -> dict[str, Tensor]:
    """Copies of all parameters and buffers by name."""
    return {
        f"{part}.{name}": value.clone()
        for part, module in (("body", stage.body), ("head", stage.head))
        for name, value in module.state_dict().items()
    }


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two named sets of tensors are equal to the last bit."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def train_step_to_gradients(
    stage: Stage, x: Tensor, target: Tensor, delta: Tensor | None
) -> dict[str, Tensor]:
    """One batch up to the gradients, without the update."""
    stage.forward(x, reconciled=delta is not None)
    stage.output_gradient(target)
    stage.reconcile(delta)
    return gradients(stage)


class Net:
    """Bodies and heads of four stages with a batch for them, in float64."""

    def __init__(
        self, bodies: Sequence[nn.Sequential], heads: Sequence[nn.Module], x: Tensor, target: Tensor
    ) -> None:
        self.bodies = [body.double() for body in bodies]
        self.heads = [head.double() for head in heads]
        self.x = x.double()
        self.target = target


def smooth_net() -> Net:
    """Four dense stages, two of whose heads are not linear."""
    with seeded(0, "smooth net"):
        bodies = [
            nn.Sequential(nn.Linear(6, 7), nn.Tanh()),
            nn.Sequential(nn.Linear(7, 5), nn.GELU(), nn.Linear(5, 5), nn.Tanh()),
            nn.Sequential(nn.Linear(5, 8), nn.GELU()),
            nn.Sequential(nn.Linear(8, 6), nn.Tanh()),
        ]
        heads: list[nn.Module] = [
            nn.Linear(7, 3),
            nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)),
            nn.Linear(8, 3),
            nn.Sequential(nn.Tanh(), nn.Linear(6, 3)),
        ]
        return Net(bodies, heads, torch.randn(5, 6), torch.tensor([0, 2, 1, 1, 0]))


def conv_net() -> Net:
    """Four stages with convolutions and BatchNorm, which ties the samples of a batch together."""

    def block(inputs: int, outputs: int, activation: nn.Module, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), activation)

    with seeded(0, "conv net"):
        bodies = [
            block(2, 4, nn.Tanh()),
            block(4, 4, nn.GELU()),
            block(4, 5, nn.Tanh(), stride=2),
            nn.Sequential(nn.Flatten(), nn.Linear(20, 6, bias=False), nn.BatchNorm1d(6), nn.GELU()),
        ]
        heads = [
            PooledLinear((4, 4, 4), 3),
            PooledLinear((4, 4, 4), 3),
            PooledLinear((5, 2, 2), 3),
            nn.Linear(6, 3),
        ]
        return Net(bodies, heads, torch.randn(6, 2, 4, 4), torch.tensor([0, 2, 1, 1, 0, 2]))


NETS = {"smooth": smooth_net, "conv": conv_net}
