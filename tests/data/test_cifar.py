import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelocal.data import load_dataset
from pipelocal.data.cifar import CIFAR10, CIFAR100
from pipelocal.data.files import Bytes
from tests.data.errors import data_error
from tests.data.formats import shrink_cifar_binary, write_cifar_binary, write_cifar_python

CIFAR10_TRAIN = [f"data_batch_{number}" for number in range(1, 6)]


def write_binary(name: str, folder: Path) -> dict[str, tuple[Bytes, Bytes]]:
    variant = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    return {
        file: write_cifar_binary(
            folder,
            file,
            records=3 if file == variant.test_file else 4,
            label_bytes=variant.label_bytes,
            classes=variant.info.known_classes,
        )
        for file in (*variant.train_files, variant.test_file)
    }


def test_official_sizes_of_the_binary_files() -> None:
    assert CIFAR10.records[0] * (CIFAR10.label_bytes + 3072) == 30_730_000
    assert CIFAR100.records[0] * (CIFAR100.label_bytes + 3072) == 153_700_000
    assert CIFAR100.records[1] * (CIFAR100.label_bytes + 3072) == 30_740_000


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin"])
def test_cifar10_binary(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_cifar_binary(monkeypatch, "cifar10")
    written = write_binary("cifar10", tmp_path / folder)
    data = load_dataset("cifar10", root=tmp_path, seed=0)
    images, labels = zip(*(written[f"{file}.bin"] for file in CIFAR10_TRAIN), strict=True)
    assert torch.equal(data.train_x, torch.from_numpy(np.concatenate(images)))
    assert data.train_y.tolist() == np.concatenate(labels).tolist()
    assert torch.equal(data.test_x, torch.from_numpy(written["test_batch.bin"][0]))
    assert data.augment
    assert data.train_x.is_contiguous()


def test_cifar100_binary_takes_the_fine_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_cifar_binary(monkeypatch, "cifar100")
    written = write_binary("cifar100", tmp_path / "cifar-100-binary")
    data = load_dataset("cifar100", root=tmp_path, seed=0)
    for file, x, y in (
        ("train.bin", data.train_x, data.train_y),
        ("test.bin", data.test_x, data.test_y),
    ):
        assert torch.equal(x, torch.from_numpy(written[file][0]))
        assert y.tolist() == written[file][1].tolist()


def test_cifar100_is_not_looked_for_in_the_root(tmp_path: Path) -> None:
    write_binary("cifar100", tmp_path)
    assert "holds none of its files" in data_error("cifar100", tmp_path)


def test_one_missing_binary_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_cifar_binary(monkeypatch, "cifar10")
    write_binary("cifar10", tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    text = data_error("cifar10", tmp_path)
    assert f"{tmp_path / 'data_batch_4.bin'} is missing" in text
    assert "--data-root DIR" in text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda content: content[:-1], "12291 bytes where the official file has 12292"),
        (lambda content: content[:-3073], "9219 bytes"),
        (lambda content: content + b"x", "12293 bytes"),
        (lambda _: b"", "0 bytes"),
        (lambda content: b"\x0a" + content[1:], "label 10 where 10 classes allow 0 to 9"),
    ],
)
def test_corrupt_binary_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[bytes], bytes], said: str
) -> None:
    shrink_cifar_binary(monkeypatch, "cifar10")
    write_binary("cifar10", tmp_path)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(spoil(path.read_bytes()))
    text = data_error("cifar10", tmp_path)
    assert f"{path} is truncated or corrupt" in text
    assert said in text


def test_cifar10_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_cifar_python(tmp_path, monkeypatch, "CIFAR10")
    data = load_dataset("cifar10", root=tmp_path, seed=0)
    images = np.concatenate([written[file][0] for file in CIFAR10_TRAIN])
    assert torch.equal(data.train_x, torch.from_numpy(images))
    assert data.train_y.tolist() == [0, 3, 9, 1] * 5
    assert torch.equal(data.test_x, torch.from_numpy(written["test_batch"][0]))
    assert data.augment


def test_cifar100_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_cifar_python(tmp_path, monkeypatch, "CIFAR100")
    data = load_dataset("cifar100", root=tmp_path, seed=0)
    assert torch.equal(data.train_x, torch.from_numpy(written["train"][0]))
    assert data.test_y.tolist() == [0, 3, 9, 1]
    assert data.info.known_classes == 100


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_bad_python_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    write_cifar_python(tmp_path, monkeypatch, "CIFAR10")
    path = tmp_path / "cifar-10-batches-py" / file
    path.write_bytes(path.read_bytes()[:-1])
    text = data_error("cifar10", tmp_path)
    assert f"{path} is truncated or corrupt (its MD5 is not the official one)" in text
    path.unlink()
    assert f"{path} is missing" in data_error("cifar10", tmp_path)


class Tripwire:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_foreign_pickle_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar_python(tmp_path, monkeypatch, "CIFAR10")
    sprung = tmp_path / "sprung"
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(pickle.dumps(Tripwire(sprung)))
    assert f"{path} is truncated or corrupt" in data_error("cifar10", tmp_path)
    assert not sprung.exists()


def test_odd_content_behind_a_right_md5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar_python(tmp_path, monkeypatch, "CIFAR10")
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", lambda *_: True)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    for content in (b"", b"\x80\x04 no pickle", pickle.dumps({"data": None}), pickle.dumps(7)):
        path.write_bytes(content)
        text = data_error("cifar10", tmp_path)
        assert f"{path.parent} is truncated or corrupt" in text


def test_a_bad_form_does_not_give_way_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_cifar_binary(monkeypatch, "cifar10")
    write_binary("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    assert "cifar-10-batches-bin/data_batch_1.bin is missing" in data_error("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert "cifar-10-batches-py/data_batch_1 is missing" in data_error("cifar10", tmp_path)
