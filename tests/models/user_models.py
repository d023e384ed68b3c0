"""Models as users write them, for tests that name them ``tests.models.user_models:function``."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from pipelocal.models import Chain, Shape, Unit

NUMBER = 3


def sequential(shape: Shape, classes: int) -> nn.Sequential:
    """A ready-made module, drawn from whatever torch's generator is at."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh()),
            second=nn.Linear(16, 16),
            classifier=nn.Linear(16, classes),
        )
    )


def chain(shape: Shape, classes: int) -> Chain:
    """A chain, built by its units' recipes."""
    units = [
        Unit(name="flat", build=nn.Flatten),
        Unit(name="wide", build=lambda: nn.Linear(64, 8)),
    ]
    classifier = Unit(name="classifier", build=lambda: nn.Linear(8, classes))
    return Chain(units, classifier=classifier, input_shape=shape, classes=classes)


class _Mean(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True).expand(-1, self.classes)


def bare(shape: Shape, classes: int) -> nn.Sequential:
    """A model without any parameter."""
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), mean=_Mean(classes)))


def nothing(shape: Shape, classes: int) -> None:
    """Forgets its return."""


def fails(shape: Shape, classes: int) -> nn.Sequential:
    """Raises."""
    raise ZeroDivisionError("no such width")


def linear(shape: Shape, classes: int) -> nn.Module:
    """A module, but no sequence of units."""
    return nn.Linear(int(torch.tensor(shape).prod()), classes)
