"""The binary form of CIFAR: records of one or two label bytes and 3,072 pixel bytes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelocal.data.files import Bytes, check_labels, corrupt_file, missing_file, read_file

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class BinaryForm:
    """The files of one CIFAR in binary form.

    Attributes:
        folder: the name of their folder below the data root.
        train_files: file names of the training part, in their order.
        test_file: file name of the test part.
        train_records: samples in each training file.
        test_records: samples in the test file.
        label_bytes: bytes before the pixels; the last of them is the class.
    """

    folder: str
    train_files: tuple[str, ...]
    test_file: str
    train_records: int
    test_records: int
    label_bytes: int


def read_binary(
    folder: Path, form: BinaryForm, *, classes: int, name: str, layout: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both parts of a CIFAR in binary form.

    Returns:
        Training images ``[N, 3, 32, 32]`` uint8, labels ``[N]`` int64, then the same of the test
        part.

    Raises:
        DataError: a file is missing, has not the official size, or holds a label out of range; the
            text names it.
    """

    def part(files: tuple[str, ...], records: int) -> tuple[Tensor, Tensor]:
        parts = [
            _read_records(folder / file, form, records, classes, name=name, layout=layout)
            for file in files
        ]
        images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([labels for _, labels in parts])
        return torch.from_numpy(images), torch.from_numpy(labels).long()

    return *part(form.train_files, form.train_records), *part((form.test_file,), form.test_records)


def _read_records(
    path: Path, form: BinaryForm, records: int, classes: int, *, name: str, layout: str
) -> tuple[Bytes, Bytes]:
    if not path.exists():
        raise missing_file(path, name=name, layout=layout)
    content = np.frombuffer(read_file(path, name=name), np.uint8)
    record_size = form.label_bytes + _PIXELS
    if len(content) != records * record_size:
        reason = f"{len(content)} bytes where the official file has {records * record_size}"
        raise corrupt_file(path, name=name, reason=reason)
    table = content.reshape(records, record_size)
    labels = table[:, form.label_bytes - 1]
    check_labels(labels, classes=classes, path=path, name=name)
    return table[:, form.label_bytes :], labels
