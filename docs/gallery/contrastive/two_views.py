"""Pairs of views: each image twice in a batch, cropped, mirrored and made noisy in two ways."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset, Sampler

LEAST_CROP = 0.6
"""Least side of a crop, as a share of the image's."""
NOISE = 0.1
"""Standard deviation of the noise."""


class TwoViews(Dataset[tuple[Tensor, int]]):
    """Two views of each image, as samples of their own; the target is the image's number.

    Samples 2i and 2i + 1 are the views of image i. The random numbers of a sample depend on its index, so
    they are two, and not one twice.

    Args:
        images: ``[N, C, H, W]``, from 0 to 1.
        mirror: whether half of the views are mirrored.
    """

    def __init__(self, images: Tensor, *, mirror: bool) -> None:
        self._images, self._mirror = images, mirror

    def __len__(self) -> int:
        return 2 * len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._view(self._images[index // 2]), index // 2

    def _view(self, image: Tensor) -> Tensor:
        side = image.shape[-1]
        size = int(torch.randint(round(LEAST_CROP * side), side + 1, ()))
        top, left = (int(torch.randint(side - size + 1, ())) for _ in range(2))
        crop = image[None, :, top : top + size, left : left + size]
        view = interpolate(crop, (side, side), mode="bilinear", align_corners=False)[0]
        if self._mirror and torch.rand(()) < 0.5:
            view = view.flip(-1)
        return view + NOISE * torch.randn_like(view)


class Pairwise(Sampler[int]):
    """Images in a new order for each epoch, both views of each one after the other.

    Args:
        images: number of images, which must fill whole batches, or the last one is small.
    """

    def __init__(self, images: int) -> None:
        self._images = images

    def __len__(self) -> int:
        return 2 * self._images

    def __iter__(self) -> Iterator[int]:
        for image in torch.randperm(self._images).tolist():
            yield from (2 * image, 2 * image + 1)
