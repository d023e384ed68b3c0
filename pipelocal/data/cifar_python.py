"""The Python (pickle) form of CIFAR, read by torchvision, which checks each file's MD5 first."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelocal.data.files import corrupt_file, missing_file
from pipelocal.errors import DataError
from pipelocal.system.torchvision import import_torchvision


def read_python(
    root: Path, torchvision_class: str, *, name: str, layout: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both parts of a CIFAR in Python form, as ``torchvision.datasets`` finds it below ``root``.

    Args:
        root: the folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        torchvision_class: ``"CIFAR10"`` or ``"CIFAR100"``.
        name: the data set, for messages.
        layout: the wanted files, for messages.

    Returns:
        Training images ``[N, 3, 32, 32]`` uint8, labels ``[N]`` int64, then the same of the test
        part.

    Raises:
        DataError: a file is missing or its MD5 is not the official one; the text names it.
    """
    reader = getattr(import_torchvision().datasets, torchvision_class)
    try:
        train, test = (reader(root, train=part, download=False) for part in (True, False))
        return *_tensors(train), *_tensors(test)
    except Exception as error:  # torchvision promises no kind of error for a bad file
        raise _diagnose(reader, root, error, name=name, layout=layout) from error


def _tensors(part: Any) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(part.targets, dtype=torch.int64)


def _diagnose(reader: Any, root: Path, error: Exception, *, name: str, layout: str) -> DataError:
    """Find the file at fault: torchvision's own message does not name it."""
    check_integrity = import_torchvision().datasets.utils.check_integrity
    folder = root / reader.base_folder
    listed = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    for file, md5 in listed:
        path = folder / file
        if not path.exists():
            return missing_file(path, name=name, layout=layout)
        if not check_integrity(path, md5):
            return corrupt_file(path, name=name, reason="its MD5 is not the official one")
    return corrupt_file(folder, name=name, reason=f"{type(error).__name__}: {error}")
