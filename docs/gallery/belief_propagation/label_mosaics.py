"""Noisy mosaics of four images, where each pixel has a label: background, or the kind of its thing."""

from __future__ import annotations

from pathlib import Path

import torch
from pipelocal.data import load_dataset
from torch import Tensor
from torch.utils.data import Dataset

KINDS = {
    "fashion-mnist": {
        "top": (0, 2, 4, 6),  # T-shirt, pullover, coat, shirt
        "long": (1, 3),  # trousers, dress
        "shoe": (5, 7, 9),  # sandal, sneaker, ankle boot
        "bag": (8,),
    },
    "digits": {"0 to 2": (0, 1, 2), "3 to 5": (3, 4, 5), "6 and 7": (6, 7), "8 and 9": (8, 9)},
}
"""Kinds of things, with the classes of each; label 0 is the background, and they are the labels from 1 on."""
INK = 0.1
"""Pixels above are part of a thing."""


class Mosaics(Dataset[tuple[Tensor, Tensor]]):
    """Images ``[1, 2 S, 2 S]``, float32, and labels ``[2 S, 2 S]``, int64, of 2x2 images of S x S.

    Args:
        images: ``[N, S, S]``, float32 in [0, 1], or uint8.
        kinds: ``[N]``, int64, of each image: 1 and up.
        classes: names of the labels.
        count: number of mosaics.
        noise: standard deviation of the Gaussian noise that is added.
        seed: says which images are put together.
        anew: whether a mosaic gets other noise each time that it is read, as for training.
    """

    def __init__(
        self,
        images: Tensor,
        kinds: Tensor,
        *,
        classes: list[str],
        count: int,
        noise: float,
        seed: int,
        anew: bool,
    ) -> None:
        self.images, self.kinds, self.classes, self.noise = images, kinds, classes, noise
        self.seed, self.anew = seed, anew
        self.white = 255 if images.dtype == torch.uint8 else 1
        chance = torch.Generator().manual_seed(seed)
        self.parts = torch.randint(len(images), (count, 2, 2), generator=chance)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        parts = self.parts[index]
        images = self.images[parts] / self.white  # [2, 2, S, S]
        labels = torch.where(images > INK, self.kinds[parts][..., None, None], 0)
        image, label = (each.transpose(1, 2).flatten(2).flatten(0, 1) for each in (images, labels))
        chance = None  # the global one, which pipelocal seeds for each sample
        if not self.anew:
            chance = torch.Generator().manual_seed(self.seed + index)
        noise = self.noise * torch.randn(image.shape, generator=chance)
        return (image + noise)[None], label


def make(
    root: str | Path | None, *, noise: float = 0.8, count: int = 2000, seed: int = 0
) -> tuple[Mosaics, Mosaics]:
    """Return mosaics to train on, and a quarter as many of other images to evaluate on.

    Args:
        root: folder with ``FashionMNIST/raw``, as for ``--data fashion-mnist``; None for digits.
        noise: standard deviation, where images lie in [0, 1].
        count: mosaics to train on.
        seed: says which images are put together, and which noise the mosaics of evaluation have.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    name = "digits" if root is None else "fashion-mnist"
    data = load_dataset(name, root=root, seed=seed)
    kind_of = torch.zeros(data.info.known_classes, dtype=torch.int64)
    for kind, classes in enumerate(KINDS[name].values(), start=1):
        kind_of[list(classes)] = kind

    def part(x: Tensor, y: Tensor, count: int, *, anew: bool) -> Mosaics:
        return Mosaics(
            x[:, 0],
            kind_of[y],
            classes=["background", *KINDS[name]],
            count=count,
            noise=noise,
            seed=seed,
            anew=anew,
        )

    train = part(data.train_x, data.train_y, count, anew=True)
    return train, part(data.test_x, data.test_y, max(1, count // 4), anew=False)


def mosaics(root: Path | None, seed: int) -> tuple[Mosaics, Mosaics]:
    """For the command line: ``--data label_mosaics.py:mosaics``."""
    return make(root, seed=seed)
