"""Partial convolution: a convolution that sees the open places of an image alone.

After arXiv 1804.07723, by memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PartialConv2d(nn.Module):
    """A convolution of the same size, of which a mask opens some places and closes the others::

        out = (size * size / open) * (sum over the window of w * x at its open places) + b   where any is open
        out = 0                                                                              elsewhere

    ``open`` counts the window's open places; what is outside of the image is closed. So it makes no
    difference to the places of a region whether the rest of the image is closed or cut off.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        size: side of the window, odd.
    """

    ones: Tensor

    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2)
        self.register_buffer("ones", torch.ones(1, 1, size, size), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolve the open places.

        Args:
            x: ``[B, inputs, H, W]``.
            mask: 1 where a place is open and 0 where it is closed, ``[B, 1, H, W]`` of the dtype of x; None
                if all of the image is open.

        Returns:
            ``[B, outputs, H, W]``.
        """
        kernel = self.convolution
        assert kernel.bias is not None
        if mask is None:
            mask = torch.ones_like(x[:1, :1])
        else:
            x = torch.where(mask > 0, x, 0)  # not a product: NaN at a closed place would be seen
        opened = F.conv2d(mask, self.ones, padding=kernel.padding)
        scale = torch.where(opened > 0, self.ones.numel() / opened.clamp_min(1), 0)
        summed = F.conv2d(x, kernel.weight, padding=kernel.padding)
        return summed * scale + kernel.bias[:, None, None] * (opened > 0)
