"""The recipe for Ray, on a local Ray of two workers: the bits of one process, and a lost rank comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipelocal.checkpoint.snapshot import SnapshotFolder
from tests.interrupted import EVERY
from tests.launching import PATIENCE_S, until
from tests.test_transparency import assert_same_bits, train_alone

RECIPE = Path(__file__).parents[2] / "launch" / "on_ray.py"
SHORT = ["--model", "mlp", "--stages", "2", "--epochs", "1"]
LONG = ["--model", "mlp", "--stages", "2", "--epochs", "60", *EVERY]

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def on_ray(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(RECIPE), "2", "train", "--plain", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"},  # 15 otherwise
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def is_rank_1(process: psutil.Process, out: Path) -> bool:
    with suppress(psutil.Error):
        return str(out) in process.cmdline() and process.environ().get("RANK") == "1"
    return False


def test_two_workers_equal_one_process(tmp_path: Path) -> None:
    done = on_ray(tmp_path, *SHORT, "--out", str(tmp_path / "run"))
    assert done.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
    assert_same_bits(tmp_path / "run", train_alone(SHORT, tmp_path / "alone"))


def test_a_lost_rank_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "run"
    running = on_ray(tmp_path, *LONG, "--out", str(out))
    until(lambda: out.exists() and SnapshotFolder(out).steps())
    (rank,) = (each for each in psutil.process_iter() if is_rank_1(each, out))
    rank.kill()
    assert running.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
    assert "going on after batch" in (tmp_path / "log").read_text()
    assert_same_bits(out, train_alone(LONG, tmp_path / "alone"))


def test_what_cannot_work_is_said_once(tmp_path: Path) -> None:
    done = on_ray(tmp_path, *SHORT, "--lr", "-1")
    assert done.wait(PATIENCE_S) == 2
    assert (tmp_path / "log").read_text().count("pipelocal (rank 0): error:") == 1
