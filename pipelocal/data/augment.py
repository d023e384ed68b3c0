"""The usual CIFAR augmentation, for a whole batch at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4
"""Pixels of zeros put on each side before the crop."""


def random_crop_flip(images: Tensor, *, seed: int) -> Tensor:
    """Shift each image by up to ``PADDING`` pixels and mirror about half of them.

    Args:
        images: ``[B, C, H, W]``, any dtype, not yet normalised (the border is filled with 0).
        seed: the outcome depends on nothing but this and the images.

    Returns:
        ``[B, C, H, W]`` of the same dtype.
    """
    batch = len(images)
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randint(0, 2 * PADDING + 1, (2, batch), generator=generator)
    mirrored = torch.randint(0, 2, (batch,), generator=generator).bool()
    return crop_flip(images, top=offsets[0], left=offsets[1], mirrored=mirrored)


def crop_flip(images: Tensor, *, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """Pad with zeros, cut one window of the original size out of each image, mirror some.

    Args:
        images: ``[B, C, H, W]``.
        top, left: ``[B]``, int64, 0 to ``2 * PADDING``: the window's corner in the padded image.
        mirrored: ``[B]``, bool: flip this window horizontally.

    Returns:
        ``[B, C, H, W]`` of the same dtype.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4).view(batch, channels, -1)
    rows = torch.arange(height) + top[:, None]
    columns = torch.arange(width).expand(batch, width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + left[:, None]
    # One gather along the flattened pixels: an index per pixel, shared by the channels.
    pixels = rows[:, :, None] * (width + 2 * PADDING) + columns[:, None, :]
    window = pixels.view(batch, 1, -1).expand(batch, channels, -1)
    return padded.gather(2, window).view(images.shape)
