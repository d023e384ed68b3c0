"""A run on augmented images that is killed in the middle of an epoch ends with the bits of one that was not.

The data set itself kills its rank, from a worker where there are any, once a snapshot is there that it has
enough batches for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pipelocal
from pipelocal import cli
from tests.data.test_image_folder import make_images
from tests.launching import PATIENCE_S, launch

BATCHES = 6
"""Of an epoch."""
DATA = '''
import os, signal, time
from pathlib import Path
import torch
from torch.utils.data import get_worker_info
from pipelocal.data import DataOptions, find_data

class Killing:
    """The images of a folder, until the tenth batch."""

    def __init__(self, images):
        self.images, self.loaded = images, 0
        self.classes = ["c", "d", "o"]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.loaded += 1
        info, manifest = get_worker_info(), os.environ.get("KILL_AT")
        workers = 1 if info is None else info.num_workers
        if manifest and self.loaded > 8 + 40 // workers:  # 8 to see what there is
            while not Path(manifest).exists():
                time.sleep(0.01)
            os.kill(os.getpid() if info is None else os.getppid(), signal.SIGKILL)
        return self.images[index]

def images(root, seed):
    options = DataOptions(data="imagefolder", data_root=str(root), image_size=8, rand_augment=True)
    found = find_data(options, seed)
    return Killing(found.train), found.test
'''


def command(folder: Path, out: str, workers: int) -> list[str]:
    text = (
        f"train --data {folder}/killing.py:images --data-root {folder} --batch-size 4 --model mlp"
    )
    text += (
        f" --stages 4 --epochs 3 --snapshot-every 2 --keep-snapshots 9 --plain --workers {workers}"
    )
    return [*text.split(), "--out", str(folder / out)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, and a run that nobody kills."""
    path = tmp_path_factory.mktemp("killed")
    make_images(path, "train", count=4 * BATCHES // 3)
    make_images(path, "val", count=2)
    (path / "killing.py").write_text(DATA)
    cli.run(command(path, "whole", 0))
    return path


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def manifest_of(folder: Path, out: str) -> Path:
    """What is there once the snapshot after batch 8 is."""
    return folder / out / "snapshots" / "step-00000008" / "manifest.json"


def killed(folder: Path, out: str, ranks: int, workers: int) -> None:
    """Train under torchrun until the snapshot after batch 8, and a little further."""
    manifest = manifest_of(folder, out)
    done = subprocess.run(
        [*TORCHRUN, str(ranks), "-m", "pipelocal", *command(folder, out, workers)],
        env={**os.environ, "KILL_AT": str(manifest)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode != 0, done.stderr
    assert manifest.exists(), done.stderr
    assert not (folder / out / "summary.json").exists()


def assert_as_if_never_killed(folder: Path, out: str) -> None:
    one, other = (pipelocal.load(str(folder / run)).state_dict() for run in ("whole", out))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_ranks_with_workers_then_one_without(folder: Path) -> None:
    manifest = str(manifest_of(folder, "two"))
    ranks = launch(
        folder, command(folder, "two", 2), 2, lambda _: os.environ.update(KILL_AT=manifest)
    )
    codes = ranks.wait()
    assert codes[0] == -signal.SIGKILL, ranks.output()
    assert codes[1] == 1, ranks.output()
    assert not (folder / "two" / "summary.json").exists()
    cli.run(command(folder, "two", 0))
    assert_as_if_never_killed(folder, "two")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_any_ranks_and_workers(folder: Path, ranks: int, workers: int) -> None:
    out = f"{ranks}-{workers}"
    killed(folder, out, ranks, workers)
    again = [*TORCHRUN, str(ranks), "-m", "pipelocal", *command(folder, out, workers)]
    subprocess.run(again, capture_output=True, timeout=PATIENCE_S, check=True)
    assert_as_if_never_killed(folder, out)
