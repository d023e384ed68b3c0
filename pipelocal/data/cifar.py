"""CIFAR-10 and CIFAR-100, in the Python or the binary format, whichever is below the root.

torchvision reads the Python form, which is pickled, and checks each file's MD5 before it does. It does not
know the binary one: records of one or two label bytes and 3,072 pixel bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelocal.data.dataset import ArrayDataset, DataInfo
from pipelocal.data.files import (
    Bytes,
    check_labels,
    corrupt_file,
    missing_file,
    read_file,
    require_root,
)
from pipelocal.errors import DataError
from pipelocal.system.torchvision import import_torchvision

Part = tuple[Tensor, Tensor]
"""Images ``[N, 3, 32, 32]`` uint8 and labels ``[N]`` int64."""


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """One of the two data sets and the locations of its files."""

    info: DataInfo
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Per channel, of the training images scaled to [0, 1]."""
    python_folder: str
    """Of the Python form, below the root."""
    binary_folders: tuple[str, ...]
    """Of the binary form, below the root; ``""`` for the root itself."""
    train_files: tuple[str, ...]
    """Of the binary form, in their order."""
    test_file: str
    records: tuple[int, int]
    """Of the binary form: samples in each training file and in the test file."""
    label_bytes: int
    """Of the binary form, before the pixels; the last of them is the class."""
    layout: str
    """All of this in words, with ``DIR`` for the root."""

    def load(self, root: Path | None, _seed: int) -> ArrayDataset:
        """Read the set. If several forms are there: Python form, binary folder, root itself.

        The form is chosen by what is there, before anything is read: a bad file is an error even
        if another form is there too.

        Raises:
            DataError: no root, none of the forms, or a file is missing, truncated or corrupt.
        """
        folder = require_root(root, name=self.info.name, layout=self.layout)
        if (folder / self.python_folder).exists():
            (train_x, train_y), (test_x, test_y) = self._read_python(folder)
        else:
            folder, (train, test) = self._binary_folder(folder), self.records
            train_x, train_y = self._read_binary(
                [folder / file for file in self.train_files], train
            )
            test_x, test_y = self._read_binary([folder / self.test_file], test)
        return ArrayDataset(
            info=self.info,
            train_x=train_x,
            train_y=train_y,
            test_x=test_x,
            test_y=test_y,
            mean=self.mean,
            std=self.std,
            augment=True,
        )

    def _read_python(self, root: Path) -> tuple[Part, Part]:
        datasets = import_torchvision().datasets
        reader = getattr(datasets, self.info.name.upper())
        try:
            train, test = (
                (
                    torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
                    torch.tensor(part.targets),
                )
                for part in (reader(root, train=True), reader(root, train=False))
            )
            return train, test
        except Exception as error:  # torchvision promises no kind of error, and names no file
            name, folder = self.info.name, root / reader.base_folder
            meta = (reader.meta["filename"], reader.meta["md5"])
            for file, md5 in (*reader.train_list, *reader.test_list, meta):
                if not (folder / file).exists():
                    raise missing_file(folder / file, name=name, layout=self.layout) from error
                if not datasets.utils.check_integrity(folder / file, md5):
                    reason = "its MD5 is not the official one"
                    raise corrupt_file(folder / file, name=name, reason=reason) from error
            reason = f"{type(error).__name__}: {error}"
            raise corrupt_file(folder, name=name, reason=reason) from error

    def _binary_folder(self, root: Path) -> Path:
        files = (*self.train_files, self.test_file)
        for folder in self.binary_folders:
            if (
                (root / folder).exists()
                if folder
                else any((root / file).exists() for file in files)
            ):
                return root / folder
        raise DataError(
            f"data set '{self.info.name}': {root} holds none of its files: "
            f"give --data-root DIR with {self.layout}"
        )

    def _read_binary(self, paths: Sequence[Path], records: int) -> Part:
        tables = [self._table(path, records) for path in paths]
        images = np.concatenate([table[:, self.label_bytes :] for table in tables])
        labels = np.concatenate([table[:, self.label_bytes - 1] for table in tables])
        return torch.from_numpy(images).view(-1, 3, 32, 32), torch.from_numpy(labels).long()

    def _table(self, path: Path, records: int) -> Bytes:
        """A file's records, ``[records, label_bytes + 3072]``."""
        name, size = self.info.name, self.label_bytes + 3 * 32 * 32
        if not path.exists():
            raise missing_file(path, name=name, layout=self.layout)
        content = np.frombuffer(read_file(path, name=name), np.uint8)
        if len(content) != records * size:
            reason = f"{len(content)} bytes where the official file has {records * size}"
            raise corrupt_file(path, name=name, reason=reason)
        table = content.reshape(records, size)
        labels = table[:, self.label_bytes - 1]
        check_labels(labels, classes=self.info.known_classes, path=path, name=name)
        return table


CIFAR10 = Cifar(
    info=DataInfo(name="cifar10", sample_shape=(3, 32, 32), classes=10),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    python_folder="cifar-10-batches-py",
    binary_folders=("cifar-10-batches-bin", ""),
    train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test_file="test_batch.bin",
    records=(10_000, 10_000),
    label_bytes=1,
    layout=(
        "DIR/cifar-10-batches-py/ (data_batch_1 to 5, test_batch, batches.meta), or "
        "data_batch_1.bin to data_batch_5.bin and test_batch.bin in DIR/cifar-10-batches-bin/ "
        "or in DIR itself"
    ),
)

CIFAR100 = Cifar(
    info=DataInfo(name="cifar100", sample_shape=(3, 32, 32), classes=100),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    python_folder="cifar-100-python",
    binary_folders=("cifar-100-binary",),
    train_files=("train.bin",),
    test_file="test.bin",
    records=(50_000, 10_000),
    label_bytes=2,
    layout=(
        "DIR/cifar-100-python/ (train, test, meta) or DIR/cifar-100-binary/ (train.bin, test.bin)"
    ),
)
