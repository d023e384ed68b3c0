"""Mosaics of scikit-learn's handwritten digits, whose class is a pair of digits, not all of them trained on.

A mosaic has 2 x 2 places of 8 x 8 pixels: two hold digits, a and b, which differ, and two hold noise: the
pixels of a digit in any order, so that no place is brighter than another. The 45 pairs are the classes, and
the ten digits the attributes: 1 for the two of the pair.

Which pairs are in training goes by how far a and b are apart on a ring of ten, so every digit has its share::

    pairs    0 to 19   3 or 4 apart   seen; what is learnt while gamma is chosen
            20 to 29   2 apart        seen; held out while gamma is chosen
            30 to 44   1 or 5 apart   unseen
"""

from __future__ import annotations

from itertools import combinations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import TensorDataset

ORDER = (3, 4, 2, 1, 5)
PAIRS = sorted(
    combinations(range(10), 2),
    key=lambda pair: ORDER.index(min(pair[1] - pair[0], 10 - pair[1] + pair[0])),
)
"""Classes, the seen ones first."""
LEARNT, SEEN, CLASSES = 20, 30, 45
PLACES = 4
ATTRIBUTES = torch.zeros(CLASSES, 10).scatter(1, torch.tensor(PAIRS), 1.0)
TRAIN, HELD_OUT, TEST = slice(0, 1100), slice(1100, 1450), slice(1450, None)
"""Digits of which mosaics are made; no digit is in two of these parts."""


def mosaics(part: slice, classes: range, count: int, seed: int) -> TensorDataset:
    """Make mosaics ``[count, 1, 16, 16]``, 0 to 1, and targets ``[count, 1 + 4]``, int64.

    A target has the class, and for each place 1 if it holds a digit.

    Args:
        part: which digits they are made of.
        classes: which classes there are, equally often.
        count: how many mosaics.
        seed: of the draws.
    """
    images, digits = (torch.from_numpy(each)[part] for each in load_digits(return_X_y=True))
    images = images.float() / 16
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(classes) + classes.start
    places = torch.rand(count, PLACES, generator=generator).argsort(1)[:, :2]
    pixels = images[torch.randint(len(images), (count * PLACES,), generator=generator)]
    order = torch.rand(pixels.shape, generator=generator).argsort(1)
    cells = pixels.gather(1, order).view(count, PLACES, 64)
    for digit, place in zip(torch.tensor(PAIRS)[labels].T, places.T, strict=True):
        cells[torch.arange(count), place] = images[_one_of(digits, digit, generator)]
    pictures = cells.view(count, 2, 2, 8, 8).transpose(2, 3).reshape(count, 1, 16, 16)
    holds = torch.zeros(count, PLACES, dtype=torch.int64).scatter(1, places, 1)
    return TensorDataset(pictures, torch.cat([labels.unsqueeze(1), holds], 1))


def _one_of(digits: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """Return for each wanted digit the number of an image of it; both int64 ``[N]``."""
    counts = torch.bincount(digits, minlength=10)
    starts = counts.cumsum(0) - counts
    place = (torch.rand(len(wanted), generator=generator) * counts[wanted]).long()
    return digits.argsort(stable=True)[starts[wanted] + place]
