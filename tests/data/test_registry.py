import subprocess
import sys
from pathlib import Path

import pytest

from pipelocal.data import DATASETS, data_info, load_dataset
from pipelocal.errors import DataError, UserError
from tests.data.errors import data_error


@pytest.mark.parametrize(
    ("name", "sample_shape", "classes"),
    [
        ("digits", (1, 8, 8), 10),
        ("fashion-mnist", (1, 28, 28), 10),
        ("cifar10", (3, 32, 32), 10),
        ("cifar100", (3, 32, 32), 100),
        ("synthetic", (3, 32, 32), 10),
    ],
)
def test_info(name: str, sample_shape: tuple[int, ...], classes: int) -> None:
    info = data_info(name)
    assert (info.name, info.sample_shape, info.classes) == (name, sample_shape, classes)


def test_info_imports_no_slow_library() -> None:
    code = """
import sys
from pipelocal.data import DATASETS, data_info
known = [name for name in DATASETS if name not in ("imagefolder", "csv", "npz")]
assert [data_info(name).name for name in known] == known
assert not {"torchvision", "sklearn"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name() -> None:
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load_dataset("cifar-10", root=None, seed=0)
    with pytest.raises(UserError, match="choose one of digits, fashion-mnist"):
        data_info("nothing")


FROM_FILES = ["fashion-mnist", "cifar10", "cifar100"]


@pytest.mark.parametrize("name", FROM_FILES)
def test_no_root_says_option_and_layout(name: str) -> None:
    text = data_error(name, None)
    assert "--data-root DIR" in text
    assert "DIR/" in text


@pytest.mark.parametrize("name", FROM_FILES)
def test_root_that_is_no_folder(name: str, tmp_path: Path) -> None:
    assert f"{tmp_path / 'nowhere'} is no folder" in data_error(name, tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    assert f"{file} is no folder" in data_error(name, file)


@pytest.mark.parametrize("name", FROM_FILES)
def test_empty_root_is_no_reason_to_take_other_data(name: str, tmp_path: Path) -> None:
    text = data_error(name, tmp_path)
    assert str(tmp_path) in text
    assert "--data-root DIR" in text


def test_unreadable_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "data_batch_1.bin").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    text = data_error("cifar10", tmp_path)
    assert f"{tmp_path / 'data_batch_1.bin'} cannot be read (Permission denied)" in text


def test_root_may_be_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds none of its files"):
        load_dataset("cifar10", root=str(tmp_path), seed=0)


def test_every_entry_stands_under_its_own_name() -> None:
    for name in DATASETS:
        assert DATASETS.get(name).info.name == name
