"""What lies around a process: signals, streams, launchers. Each ends well, or is told in one line."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipelocal.checkpoint.snapshot import SnapshotFolder

PIPELOCAL = [sys.executable, "-m", "pipelocal"]
SMALL = [
    "train",
    "--model",
    "mlp",
    "--stages",
    "2",
    "--batch-size",
    "32",
    "--lr",
    "0.01",
    "--plain",
]
PATIENCE_S = 120.0
"""For what takes a second or two on an idle machine."""


def ignore_sighup() -> None:
    """As nohup does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def start_long(
    tmp_path: Path, *options: str, before: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    """A run without a soon end, in which training goes on."""
    out = tmp_path / "run"
    command = [*PIPELOCAL, *SMALL, "--epochs", "4000", "--out", str(out), *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )
    wait_for_more(out, process)
    return process


def wait_for_more(out: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run has written further metrics."""
    metrics = out / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    deadline = time.monotonic() + PATIENCE_S
    while not metrics.exists() or metrics.stat().st_size < before + 2000:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sighup_took_no_snapshot(tmp_path: Path) -> None:
    """Only SIGTERM and Ctrl-C were listened to, so a closed terminal ended a run at once, in silence."""
    process = start_long(tmp_path, "--snapshot-every", "100000")
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGHUP
    assert said.count("\n") == 1
    assert "the terminal was closed (SIGHUP); a snapshot after batch" in said
    assert SnapshotFolder(tmp_path / "run").steps()


def test_a_repeated_sighup_is_one(tmp_path: Path) -> None:
    """The system tells all processes of a terminal, and torchrun passes it on as well."""
    process = start_long(tmp_path, "--snapshot-every", "100000")
    for _ in range(3):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.01)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGHUP
    assert "a snapshot after batch" in said


def test_nohup_is_respected(tmp_path: Path) -> None:
    process = start_long(tmp_path, "--snapshot-every", "100000", before=ignore_sighup)
    process.send_signal(signal.SIGHUP)
    wait_for_more(tmp_path / "run", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert "a snapshot after batch" in said
