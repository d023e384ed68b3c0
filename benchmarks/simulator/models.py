"""Units that take a set time without computing, so that eight ranks do not share two cores.

A unit waits in its forward pass, where it makes the gradient at its input, and where it makes its
weight's gradient, in proportion to the rows of its batch. Its output is as large as
``SLEEPERS_BYTES`` asks for.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 64
"""Rows for which a unit waits as long as it is told."""
CHANNELS = 4
SECONDS = (0.030, 0.040, 0.035)
"""Forward, gradient at the input, gradient of the weight; of a unit of weight 1."""
WEIGHTS = (1.0, 1.2, 0.8, 1.1, 0.9, 1.2, 1.0, 0.7)
"""How long the units wait against each other; they cannot be balanced."""


class _WaitForInput(torch.autograd.Function):
    """Waits forward, and backward where the gradient at the input is made."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward_s: float, backward_s: float) -> Tensor:
        ctx.seconds = backward_s * len(x)
        time.sleep(forward_s * len(x))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        time.sleep(ctx.seconds)
        return gradient.clone(), None, None


class _WaitForWeight(torch.autograd.Function):
    """Waits backward where the weight's gradient is made."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, backward_s: float) -> Tensor:
        ctx.seconds = backward_s
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        time.sleep(ctx.seconds)
        return gradient, None


class Sleeper(nn.Module):
    """``[B, ...]`` to ``[B, 4, features]``.

    Args:
        features: floats a channel.
        weight: how long it waits, against the others.
    """

    def __init__(self, features: int, weight: float) -> None:
        super().__init__()
        self.features = features
        self.seconds = [weight * seconds / BATCH for seconds in SECONDS]
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (CHANNELS, self.features):  # samples
            x = x.flatten(1)[:, :1, None].expand(-1, CHANNELS, self.features)
        forward_s, input_s, weight_s = self.seconds
        if x.device.type == "meta":
            return x.clone()
        weight: Tensor = _WaitForWeight.apply(self.weight, weight_s * len(x))  # type: ignore[no-untyped-call]
        x = _WaitForInput.apply(x, forward_s, input_s)  # type: ignore[no-untyped-call]
        return x + weight  # apart, so that zero-bubble can make one gradient without the other


class Classifier(nn.Module):
    """Mean over the features, then a linear map."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(CHANNELS, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(2))  # type: ignore[no-any-return]


def sleepers(_input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """``SLEEPERS`` units whose outputs have ``SLEEPERS_BYTES`` a batch."""
    count, size = int(os.environ["SLEEPERS"]), int(os.environ["SLEEPERS_BYTES"])
    features = size // (4 * BATCH * CHANNELS)
    units = [Sleeper(features, weight) for weight in WEIGHTS[:count]]
    return nn.Sequential(*units, Classifier(classes))
