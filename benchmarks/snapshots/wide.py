"""A network of many parameters and little computing."""

from math import prod

from torch import nn

WIDTH = 1024


def wide(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Three layers of 1024 by 1024, and what leads to them."""
    layers: list[nn.Module] = [
        nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), WIDTH), nn.ReLU())
    ]
    layers += [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, classes))
