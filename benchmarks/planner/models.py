"""A model with one heavy unit, which equal numbers of units cannot balance."""

from torch import nn

WIDTHS = (16, 48, 16, 16, 16, 16, 16, 16)
"""Channels within each unit."""


def one_heavy_unit(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Eight units on images; the second has some six times the work of the others."""
    units = [_unit(input_shape[0] if i == 0 else 16, width) for i, width in enumerate(WIDTHS)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
    return nn.Sequential(*units, head)


def _unit(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 16, 1),
    )
