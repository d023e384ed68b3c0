"""Modules that work on their input in place, where the input must stay as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class OwnInput(nn.Module):
    """A copy of its input, for those behind it to change."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def disable_inplace(module: nn.Module) -> None:
    """Turn ``inplace=True`` off: a stage's input and output are shared with transfers under way."""
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]


def changes_input(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> bool:
    """Whether a module changes its input when it trains; found on the meta device.

    Args:
        build: makes the module.
        shape: of one row of its input, which is float32.
    """
    with torch.device("meta"), torch.no_grad():
        x = torch.empty(2, *shape)
        build().to("meta").train()(x)
        return x._version > 0
