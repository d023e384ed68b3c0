"""Folders of images: order, classes, augmentation, and files that are no images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelocal import cli
from pipelocal.data import DataOptions
from pipelocal.data.batches import Batch, everything
from pipelocal.data.opening import NamedData
from pipelocal.data.own import OwnBatches
from pipelocal.errors import UserError
from pipelocal.system.torchvision import import_torchvision


def make_images(root: Path, part: str, classes: str = "cdo", count: int = 7) -> None:
    """Small noisy images, each class with a colour of its own."""
    draw = np.random.default_rng(len(part))
    for number, name in enumerate(classes):
        (root / part / name).mkdir(parents=True)
        for index in range(count):
            pixels = draw.integers(0, 120, (10, 12, 3))
            pixels[..., number] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{index}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_images(tmp_path, "train")
    make_images(tmp_path, "val", "co", 3)
    return tmp_path


def data(root: Path | None, **options: Any) -> NamedData:
    where = None if root is None else str(root)
    given = {"image_size": 8, "batch_size": 4, "workers": 0, **options}
    return NamedData(DataOptions(data="imagefolder", data_root=where, **given), 0)


def trained(data: NamedData, epoch: int = 0, start: int = 0) -> list[Batch]:
    opened = data.batches()
    found = [batch for batch in opened.training(epoch, start, everything) if batch is not None]
    opened.close()
    return found


def test_small_images_that_are_enlarged_are_told_of(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first run on such a folder took minutes for a few batches, by the default size of 224."""
    data(root, image_size=20).batches().close()
    assert capsys.readouterr().err == ""
    data(root, image_size=120).batches().close()
    (line,) = capsys.readouterr().err.splitlines()
    assert "with --image-size 12, a batch is 100 times less work" in line


def test_the_same_bits_for_any_workers_and_start(root: Path) -> None:
    for more in ({}, {"rand_augment": True}):
        whole, workers = trained(data(root, **more), 1), trained(data(root, workers=2, **more), 1)
        for one, other in zip(whole, workers, strict=True):
            assert torch.equal(one.x, other.x)
            assert torch.equal(one.target, other.target)
        for one, other in zip(whole[3:], trained(data(root, **more), 1, 3), strict=True):
            assert torch.equal(one.x, other.x)
    assert whole[0].x.shape == (4, 3, 8, 8)
    assert len(whole) == 6


def test_order_and_classes_are_torchvision_s(root: Path) -> None:
    (root / "train" / "c" / "deeper").mkdir()
    (root / "train" / "c" / "0.png").rename(root / "train" / "c" / "deeper" / "0.png")
    (root / "train" / "c" / "notes.txt").touch()
    found = data(root).found
    theirs = import_torchvision().datasets.ImageFolder(root / "train")
    assert [(str(path), label) for path, label in found.train._files] == theirs.samples  # type: ignore[union-attr]
    opened = data(root).batches()
    assert opened.describe()["class_names"] == theirs.classes
    tested = torch.cat([b.target for b in opened.testing(everything) if b is not None])
    assert tested.tolist() == [0, 0, 0, 2, 2, 2]  # by the training's names: val has no d


def test_a_split_by_the_path(root: Path, tmp_path: Path) -> None:
    (root / "val").rename(root / "unused")
    assert list(data(root).batches().testing(everything)) == []
    opened = data(root, test_split=0.3).batches()
    before = opened.describe()
    assert before["train_samples"] + before["test_samples"] == 21
    assert before["test_samples"] > 1
    # What comes or goes elsewhere moves no image to the other part.
    tests = {path for path, _ in data(root, test_split=0.3).found.test._files}  # type: ignore[union-attr]
    (root / "train" / "c" / "0.png").unlink()
    again = {path for path, _ in data(root, test_split=0.3).found.test._files}  # type: ignore[union-attr]
    assert again == tests - {root / "train" / "c" / "0.png"}


def test_a_broken_image(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = root / "train" / "d" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        trained(data(root))
    assert f"{broken} cannot be read as an image" in str(caught.value)
    assert "--bad-samples skip" in str(caught.value)
    skipping = data(root, bad_samples="skip")
    assert sum(len(batch.x) for batch in trained(skipping)) == 20
    assert f"left out: {broken} cannot be read" in capfd.readouterr().err


def test_what_is_missing(root: Path) -> None:
    def error(**options: Any) -> str:
        with pytest.raises(UserError) as caught:
            data(options.pop("root", root), **options).batches()
        return str(caught.value)

    assert "give --data-root DIR with DIR/train/CLASS/" in error(root=None)
    assert f"{root / 'val' / 'train'} is missing" in error(root=root / "val")
    assert "there are test images in" in error(test_split=0.1)
    (root / "val" / "x").mkdir()
    assert f"{root / 'val' / 'x'} is of a class that" in error()
    (root / "val" / "x").rmdir()
    (root / "train" / "z").mkdir()
    assert f"{root / 'train' / 'z'} holds no image (.jpg" in error()


def test_a_run(root: Path, tmp_path: Path) -> None:
    command = (
        f"train --data imagefolder --data-root {root} --image-size 8 --batch-size 7 --model mlp"
    )
    command += f" --stages 2 --epochs 2 --plain --out {tmp_path / 'run'}"
    cli.run(command.split())
    cli.run(["evaluate", str(tmp_path / "run")])


def test_first_samples(root: Path) -> None:
    assert isinstance(data(root, train_samples=5).batches(), OwnBatches)
    assert data(root, train_samples=5).batches().steps_per_epoch == 2
    with pytest.raises(UserError, match="99 training samples are asked for, but there are 21"):
        data(root, train_samples=99).batches()
