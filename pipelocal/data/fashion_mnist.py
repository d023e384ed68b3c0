"""Fashion-MNIST from the idx files where torchvision keeps them."""

from pathlib import Path

import torch
from torch import Tensor

from pipelocal.data.dataset import ArrayDataset, DataInfo
from pipelocal.data.files import check_labels, corrupt_file, missing_file, require_root
from pipelocal.data.idx import read_idx

INFO = DataInfo(name="fashion-mnist", sample_shape=(1, 28, 28), classes=10)
FOLDER = Path("FashionMNIST", "raw")
LAYOUT = (
    "DIR/FashionMNIST/raw/ holding train-images-idx3-ubyte, train-labels-idx1-ubyte, "
    "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (plain or .gz)"
)


def load(root: Path | None, _seed: int) -> ArrayDataset:
    """Fashion-MNIST below ``root``; see ``LAYOUT``. Nothing is written there.

    Raises:
        DataError: no root, or a file is missing, truncated or corrupt; the text names it.
    """
    folder = require_root(root, name=INFO.name, layout=LAYOUT) / FOLDER
    train_x, train_y = _read_part(folder, "train")
    test_x, test_y = _read_part(folder, "t10k")
    return ArrayDataset(
        info=INFO,
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        mean=(0.2860,),
        std=(0.3530,),
    )


def _read_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images_file = _find(folder, f"{part}-images-idx3-ubyte")
    labels_file = _find(folder, f"{part}-labels-idx1-ubyte")
    images = read_idx(images_file, dimensions=3, name=INFO.name)
    labels = read_idx(labels_file, dimensions=1, name=INFO.name)
    if images.shape[1:] != INFO.sample_shape[1:]:
        reason = f"images of {images.shape[1]}x{images.shape[2]} where 28x28 are wanted"
        raise corrupt_file(images_file, name=INFO.name, reason=reason)
    if len(labels) != len(images) or len(labels) == 0:
        reason = f"{len(labels)} labels for {len(images)} images in {images_file.name}"
        raise corrupt_file(labels_file, name=INFO.name, reason=reason)
    check_labels(labels, classes=INFO.known_classes, path=labels_file, name=INFO.name)
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long()


def _find(folder: Path, file_name: str) -> Path:
    plain = folder / file_name
    packed = folder / f"{file_name}.gz"
    for path in (plain, packed):
        if path.exists():
            return path
    raise missing_file(plain, name=INFO.name, layout=LAYOUT)
