"""Heads that answer for every pixel: features ``[B, C, h, w]`` to maps ``[B, classes, H, W]``."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn


def are_maps(feature_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> bool:
    """Return whether features and outputs are both maps, channels first."""
    return len(feature_shape) == 3 and len(output_shape) == 3


class MapLinear(nn.Module):
    """A 1x1 convolution at the stage's own resolution, then bilinear interpolation to the output's size.

    Args:
        channels: number of channels C of the features.
        output_shape: ``[classes, H, W]``.
    """

    def __init__(self, channels: int, output_shape: tuple[int, ...]) -> None:
        super().__init__()
        classes, *size = output_shape
        self.size = tuple(size)
        self.linear = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if x.shape[2:] == self.size:
            return x
        return F.interpolate(x, self.size, mode="bilinear")


def map_mlp(channels: int, output_shape: tuple[int, ...]) -> nn.Sequential:
    """Build a :class:`MapLinear` behind one hidden layer of each pixel, as wide as the channels."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.GroupNorm(1, channels),
            hidden=nn.Conv2d(channels, channels, 1),
            act=nn.GELU(),
            maps=MapLinear(channels, output_shape),
        )
    )
