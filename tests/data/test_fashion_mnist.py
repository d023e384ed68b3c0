import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelocal.data import load_dataset
from pipelocal.system.torchvision import import_torchvision
from tests.data.errors import data_error
from tests.data.formats import random_bytes, write_fashion_mnist, write_idx

IMAGES = "train-images-idx3-ubyte"
LABELS = "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize("packed", [False, True])
def test_reads_plain_and_packed_files(tmp_path: Path, packed: bool) -> None:
    arrays = write_fashion_mnist(tmp_path, packed=packed)
    before = sorted(tmp_path.rglob("*"))
    data = load_dataset("fashion-mnist", root=tmp_path, seed=0)
    assert torch.equal(data.train_x, torch.from_numpy(arrays[IMAGES])[:, None])
    assert torch.equal(data.test_y, torch.from_numpy(arrays[LABELS]).long())
    assert data.test_x.shape == (5, 1, 28, 28)
    assert not data.augment
    assert sorted(tmp_path.rglob("*")) == before


def test_torchvision_reads_the_same(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    data = load_dataset("fashion-mnist", root=tmp_path, seed=0)
    for train, x, y in ((True, data.train_x, data.train_y), (False, data.test_x, data.test_y)):
        reference = import_torchvision().datasets.FashionMNIST(tmp_path, train=train)
        assert torch.equal(reference.data, x.squeeze(1))
        assert torch.equal(reference.targets, y)


def test_one_file_may_be_packed_and_another_plain(tmp_path: Path) -> None:
    arrays = write_fashion_mnist(tmp_path)
    folder = tmp_path / "FashionMNIST" / "raw"
    (folder / LABELS).unlink()
    write_idx(folder / f"{LABELS}.gz", arrays[LABELS])
    data = load_dataset("fashion-mnist", root=tmp_path, seed=0)
    assert data.test_y.tolist() == arrays[LABELS].tolist()


def test_missing_file_is_named(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    (tmp_path / "FashionMNIST" / "raw" / LABELS).unlink()
    text = data_error("fashion-mnist", tmp_path)
    assert f"{LABELS} is missing" in text
    assert "--data-root DIR" in text


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        (IMAGES, lambda content: content[:-1], "9407 bytes of data where its header says 9408"),
        (IMAGES, lambda content: content + b"x", "9409 bytes of data"),
        (IMAGES, lambda content: content[:5], "no idx header"),
        (IMAGES, lambda _: b"", "no idx header"),
        (IMAGES, lambda content: b"\x00\x00\x0d" + content[3:], "no idx header"),
        (LABELS, lambda content: b"\x00\x00\x08\x03" + content[4:], "no idx header"),
        (LABELS, lambda content: content[:-1] + b"\x0a", "label 10 where 10 classes allow 0 to 9"),
    ],
)
def test_corrupt_file_is_named(
    tmp_path: Path, file: str, spoil: Callable[[bytes], bytes], said: str
) -> None:
    write_fashion_mnist(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / file
    path.write_bytes(spoil(path.read_bytes()))
    text = data_error("fashion-mnist", tmp_path)
    assert f"{path} is truncated or corrupt" in text
    assert said in text


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[: len(content) // 2],
        lambda _: b"no gzip at all",
        lambda content: content[:30] + b"\xff" * 30 + content[60:],
        lambda content: content[:-8] + b"\x00" * 8,
    ],
    ids=["cut", "not gzip", "bad block", "bad checksum"],
)
def test_corrupt_gzip_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    write_fashion_mnist(tmp_path, packed=True)
    path = tmp_path / "FashionMNIST" / "raw" / f"{IMAGES}.gz"
    path.write_bytes(spoil(path.read_bytes()))
    assert f"{path} is truncated or corrupt (gzip: " in data_error("fashion-mnist", tmp_path)


def test_truncation_inside_a_whole_gzip_file(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, packed=True)
    path = tmp_path / "FashionMNIST" / "raw" / f"{IMAGES}.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-9]))
    assert f"{path} is truncated or corrupt (9399 bytes" in data_error("fashion-mnist", tmp_path)


def test_labels_and_images_must_match(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / LABELS
    write_idx(path, random_bytes(0, 4, below=10))
    text = data_error("fashion-mnist", tmp_path)
    assert f"{path} is truncated or corrupt (4 labels for 5 images" in text


def test_images_of_another_size(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / IMAGES
    write_idx(path, random_bytes(0, 12, 8, 8))
    assert "images of 8x8 where 28x28 are wanted" in data_error("fashion-mnist", tmp_path)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / LABELS
    path.unlink()
    path.mkdir()
    assert f"{path} cannot be read" in data_error("fashion-mnist", tmp_path)
