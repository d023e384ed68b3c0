"""The end of heads that answer for each pixel: features ``[B, C, h, w]`` to maps ``[B, classes, H, W]``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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
