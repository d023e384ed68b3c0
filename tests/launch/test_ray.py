"""The recipe for Ray, on a local Ray of two workers: the bits of one process, and a lost rank comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launching import PATIENCE_S
from tests.test_transparency import assert_same_bits, train_alone

RECIPE = Path(__file__).parents[2] / "launch" / "on_ray.py"
SHORT = ["--model", "mlp", "--stages", "2", "--epochs", "1"]

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def on_ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RECIPE), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_two_workers_equal_one_process(tmp_path: Path) -> None:
    done = on_ray("2", "train", *SHORT, "--plain", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_bits(tmp_path / "run", train_alone(SHORT, tmp_path / "alone"))


def test_what_cannot_work_is_said_once() -> None:
    done = on_ray("2", "train", *SHORT, "--lr", "-1")
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("pipelocal (rank 0): error:") == 1
