"""Images in folders named after their classes, as torchvision's ImageFolder has them.

::

    DIR/train/cat/1.jpg    DIR/train/dog/2.png    ...
    DIR/val/cat/3.jpg      ...                       or DIR/test, or none
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipelocal.data.files import require_root
from pipelocal.data.options import DataOptions
from pipelocal.data.ready import Ready
from pipelocal.data.splitting import split
from pipelocal.errors import DataError
from pipelocal.system.streams import tell
from pipelocal.system.torchvision import import_torchvision

NAME = "imagefolder"
LAYOUT = (
    "DIR/train/CLASS/ holding the images of each class, and the same below DIR/val or DIR/test if there are "
    "test images"
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision."""
TEST_FOLDERS = ("val", "test")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per channel, those of ImageNet, with which pretrained models were trained."""
EDGE = 256 / 224
"""How much larger than the crop the shorter edge of a test image is."""


class Images(Dataset[tuple[Tensor, int]]):
    """Images with their classes.

    Args:
        files: path and class of each.
        transform: from a PIL image to float32 ``[3, H, W]``.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], transform: Any) -> None:
        self._files, self._transform = files, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its class.

        Raises:
            DataError: the file is no image that can be read; names it.
        """
        path, label = self._files[index]
        from PIL import Image  # with torchvision

        try:
            with path.open("rb") as file, Image.open(file) as image:
                whole = image.convert("RGB")
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path} cannot be read as an image ({reason})") from error
        transformed: Tensor = self._transform(whole)
        return transformed, label


def load(root: Path | None, _seed: int, options: DataOptions) -> Ready:
    """Find the images below ``root``; each is read when it is needed.

    Raises:
        DataError: no root, no images, an empty class, or a test class that training does not have.
    """
    folder = require_root(root, name=NAME, layout=LAYOUT)
    train_folder = folder / "train"
    if not train_folder.is_dir():
        raise DataError(
            f"data set '{NAME}': {train_folder} is missing: give --data-root DIR with {LAYOUT}"
        )
    classes = _classes(train_folder)
    train = _files(train_folder, classes)
    there = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    test: list[tuple[Path, int]] = []
    if there:
        if options.test_split is not None:
            raise DataError(
                f"--test-split {options.test_split:g}: there are test images in {there[0]}: leave it out"
            )
        _check_classes(there[0], classes)
        test = _files(there[0], classes, may_lack=True)
    elif options.test_split is not None:
        names = [path.relative_to(train_folder).as_posix() for path, _ in train]
        parts = split(names, options.test_split)
        train, test = ([train[i] for i in part] for part in parts)
    if train:
        _tell_if_enlarged(train[0][0], options.image_size)
    return Ready(
        name=NAME,
        train=Images(
            train, training_transform(options.image_size, rand_augment=options.rand_augment)
        ),
        test=Images(test, test_transform(options.image_size)) if test else None,
        classes=len(classes),
        workers=1,
        more={"class_names": classes},
    )


def _tell_if_enlarged(path: Path, size: int) -> None:
    """Say if an image is much smaller than what it is brought to, which costs time for nothing."""
    from PIL import Image  # with torchvision

    with suppress(Exception):  # a file that cannot be read is told of with the others
        with Image.open(path) as image:
            edge = max(image.size)
        if 2 * edge <= size:
            tell(
                f"{path} has {edge} pixels at most in a row, and is enlarged to --image-size {size}: with "
                f"--image-size {edge}, a batch is {round((size / edge) ** 2)} times less work"
            )


def training_transform(size: int, *, rand_augment: bool) -> Any:
    """Crop at random in place and scale, mirror half of them, RandAugment if wanted, normalise."""
    v2 = import_torchvision().transforms.v2
    steps = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    if rand_augment:
        steps.append(v2.RandAugment())
    return v2.Compose([*steps, *_to_tensor(v2)])


def test_transform(size: int) -> Any:
    """Scale the shorter edge to a little more than ``size``, crop the middle, normalise."""
    v2 = import_torchvision().transforms.v2
    return v2.Compose(
        [v2.Resize(round(size * EDGE), antialias=True), v2.CenterCrop(size), *_to_tensor(v2)]
    )


def _to_tensor(v2: Any) -> list[Any]:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
        v2.ToPureTensor(),
    ]


def _classes(folder: Path) -> list[str]:
    names = sorted(each.name for each in folder.iterdir() if each.is_dir())
    if not names:
        raise DataError(
            f"data set '{NAME}': {folder} holds no folder: give --data-root DIR with {LAYOUT}"
        )
    return names


def _check_classes(folder: Path, classes: Sequence[str]) -> None:
    unknown = [name for name in _classes(folder) if name not in classes]
    if unknown:
        raise DataError(
            f"data set '{NAME}': {folder / unknown[0]} is of a class that {folder.parent / 'train'} does not "
            f"have: rename or remove it, or add training images of it"
        )


def _files(
    folder: Path, classes: Sequence[str], *, may_lack: bool = False
) -> list[tuple[Path, int]]:
    """Return the images of each class, in the order of torchvision's ImageFolder."""
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        paths = (
            Path(parent, file)
            for parent, _, files in sorted(os.walk(folder / name, followlinks=True))
            for file in sorted(files)
            if file.lower().endswith(SUFFIXES)
        )
        before = len(found)
        found += [(path, label) for path in paths]
        if len(found) == before and not may_lack:
            raise DataError(
                f"data set '{NAME}': {folder / name} holds no image ({', '.join(SUFFIXES)}): add some, or "
                f"remove the folder"
            )
    return found
