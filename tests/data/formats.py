"""Writers for small files of the same formats as the real data sets."""

import gzip
import hashlib
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelocal.data import cifar
from pipelocal.data.files import Bytes
from pipelocal.system.torchvision import import_torchvision


def random_bytes(seed: int, *shape: int, below: int = 256) -> Bytes:
    return np.random.default_rng(seed).integers(0, below, shape, dtype=np.uint8)


def write_idx(path: Path, array: Bytes) -> None:
    """An idx file of unsigned bytes, packed if ``path`` ends in ``.gz``."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion_mnist(root: Path, *, packed: bool = False) -> dict[str, Bytes]:
    """12 training and 5 test images below ``root``; returns the arrays by file name."""
    arrays = {}
    for part, count in (("train", 12), ("t10k", 5)):
        arrays[f"{part}-images-idx3-ubyte"] = random_bytes(count, count, 28, 28)
        arrays[f"{part}-labels-idx1-ubyte"] = random_bytes(count, count, below=10)
    for file, array in arrays.items():
        write_idx(root / "FashionMNIST" / "raw" / (file + ".gz" * packed), array)
    return arrays


def write_cifar_binary(
    folder: Path, file: str, *, records: int, label_bytes: int, classes: int
) -> tuple[Bytes, Bytes]:
    """One file; returns its images ``[N, 3, 32, 32]`` and labels ``[N]``."""
    seed = sum(file.encode())
    images = random_bytes(seed, records, 3, 32, 32)
    labels = random_bytes(seed + 1, records, below=classes)
    # The coarse label of CIFAR-100 comes first; 255 would show if it were taken for the class.
    coarse = np.full((records, label_bytes - 1), 255, np.uint8)
    table = np.concatenate([coarse, labels[:, None], images.reshape(records, -1)], axis=1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(table.tobytes())
    return images, labels


def shrink_cifar_binary(monkeypatch: pytest.MonkeyPatch, name: str) -> cifar.Cifar:
    """Make the binary form of ``cifar10`` or ``cifar100`` expect 4 and 3 records a file."""
    from pipelocal.data import DATASETS

    entry = DATASETS.get(name)
    variant = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}[name]
    small = replace(variant, records=(4, 3))
    monkeypatch.setitem(DATASETS._entries, name, replace(entry, load=small.load))
    return small


def write_cifar_python(
    root: Path, monkeypatch: pytest.MonkeyPatch, torchvision_class: str
) -> dict[str, tuple[Bytes, list[int]]]:
    """Pickles as torchvision wants them, with its list of MD5 sums changed to theirs.

    Returns the images ``[N, 3, 32, 32]`` and labels by file name.
    """
    reader = getattr(import_torchvision().datasets, torchvision_class)
    label_key = "labels" if torchvision_class == "CIFAR10" else "fine_labels"
    folder = root / reader.base_folder
    folder.mkdir(parents=True)

    def write(file: str, content: object) -> str:
        packed = pickle.dumps(content)
        (folder / file).write_bytes(packed)
        return hashlib.md5(packed, usedforsecurity=False).hexdigest()

    written = {}
    for attribute in ("train_list", "test_list"):
        sums = []
        for file, _ in getattr(reader, attribute):
            images = random_bytes(sum(file.encode()), 4, 3, 32, 32)
            labels = [0, 3, 9, 1]
            written[file] = (images, labels)
            sums.append([file, write(file, {"data": images.reshape(4, -1), label_key: labels})])
        monkeypatch.setattr(reader, attribute, sums)
    md5 = write(reader.meta["filename"], {reader.meta["key"]: ["a", "b"]})
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5})
    return written
