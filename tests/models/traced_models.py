"""Models with a forward of their own, as users write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.models import Chain, Shape

UNITS = ("first", "blocks.0", "blocks.1", "fc")


class Block(nn.Module):
    """A residual block: its skip stays inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 100:  # what a tracer could not follow
            return x
        return x + self.drop(F.relu(self.norm(self.conv(x))))  # type: ignore[no-any-return]


class Net(nn.Module):
    """Functional code, a bare parameter, a hidden constant and a method between its blocks."""

    shift: Tensor

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1.5))
        self.register_buffer("shift", torch.tensor(0.25), persistent=False)
        self.blocks = nn.ModuleList([Block(8), Block(8)])
        self.norm = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.first(x * 2.0)
        if mask is not None:
            x = x * mask
        x = self._pool(x) * self.scale
        for block in self.blocks:
            x = block(x)
        x = x.mean((2, 3)) + self.shift
        return self.fc(self.norm(x)) * torch.tensor([2.0])  # type: ignore[no-any-return]

    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(x), 2)


def net(shape: Shape, classes: int) -> Chain:
    """A chain from a module and the names of its units."""
    model = Net(shape[0], classes)
    return Chain.from_module(model, units=UNITS, input_shape=shape, classes=classes)


def misnamed(shape: Shape, classes: int) -> Chain:
    """One of the names is not quite right."""
    model = Net(shape[0], classes)
    units = ["first", "block.0", "fc"]
    return Chain.from_module(model, units=units, input_shape=shape, classes=classes)
