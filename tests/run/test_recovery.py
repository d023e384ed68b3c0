"""Real ranks, really killed and told to stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelocal.checkpoint.snapshot import SnapshotFolder, verify
from tests.interrupted import BASE, EVERY
from tests.launching import PATIENCE_S, until
from tests.test_transparency import assert_same_bits, train_alone


def _process_of(rank: int, out: Path) -> psutil.Process | None:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(out) in words and "torch.distributed.run" not in words:
            try:
                if process.environ().get("RANK") == str(rank):
                    return process
            except psutil.Error:
                continue
    return None


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_torchrun_brings_a_killed_run_back(tmp_path: Path, uninterrupted: Path, rank: int) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command += ["--max-restarts", "2", "-m", "pipelocal", "train", *BASE, *EVERY, "--plain"]
    with (tmp_path / "log").open("wb") as log:
        launcher = subprocess.Popen([*command, "--out", str(out)], stdout=log, stderr=log)
    try:
        until(SnapshotFolder(out).steps)
        victim = _process_of(rank, out)
        assert victim is not None
        victim.send_signal(signal.SIGKILL)
        assert launcher.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
    finally:
        launcher.kill()
        launcher.wait()
    assert "going on after batch" in (tmp_path / "log").read_text()
    assert_same_bits(uninterrupted, out)


def _start(command: list[str], out: Path, log: Path) -> subprocess.Popen[bytes]:
    """Started, and its first snapshot taken."""
    with log.open("ab") as file:
        process = subprocess.Popen([*command, "--out", str(out)], stdout=file, stderr=file)

    def taken() -> bool:
        assert process.poll() is None, log.read_text()
        return bool(SnapshotFolder(out).steps())

    until(taken, log.read_text)
    return process


@pytest.mark.parametrize(
    ("ranks", "number"),
    [
        (2, signal.SIGTERM),
        (1, signal.SIGINT),
        pytest.param(1, signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_with_a_snapshot(tmp_path: Path, ranks: int, number: int) -> None:
    """And the same command then ends with the bits of a run without a pause."""
    work = ["--model", "mlp", "--stages", "3", "--epochs", "12"]
    options = ["train", *work, "--plain", *EVERY]
    whole = train_alone(work, tmp_path / "whole")
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    out, log = tmp_path / "run", tmp_path / "log"
    process = _start([*command, "pipelocal", *options], out, log)
    process.send_signal(number)
    assert process.wait(PATIENCE_S) != 0
    said = log.read_text()
    assert "the same command goes on from it" in said
    steps = SnapshotFolder(out).steps()[0]
    assert f"a snapshot after batch {steps} is in" in said
    assert 10 <= steps < 276
    assert verify(SnapshotFolder(out).at(steps)).step == steps
    with log.open("ab") as file:
        again = subprocess.run(
            [*command, "pipelocal", *options, "--out", str(out)],
            stdout=file,
            stderr=file,
            check=False,
            timeout=PATIENCE_S,
        )
    assert again.returncode == 0, log.read_text()
    assert_same_bits(whole, out)


def test_sigusr1_asks_for_a_snapshot(tmp_path: Path) -> None:
    options = ["train", "--model", "mlp", "--stages", "3", "--epochs", "12", "--plain"]
    # An evaluation may be worth a snapshot as well: there is one, at the end.
    options += ["--evaluate-every", "12", "--snapshot-every", "100"]
    command = [sys.executable, "-m", "pipelocal", *options]
    process = _start(command, tmp_path / "run", tmp_path / "log")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(PATIENCE_S) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = {r["step"] for r in records if r["event"] == "snapshot"}
    assert len([step for step in steps if step % 100 and step != 276]) == 1


def test_snapshots_by_time(tmp_path: Path) -> None:
    options = ["--snapshot-minutes", "0.000001", "--keep-snapshots", "3"]
    out = train_alone([*BASE, *options], tmp_path / "run")
    assert SnapshotFolder(out).steps()[:2] == [68, 67], "and the end"


def test_a_run_that_goes_on_has_its_folder_for_itself(tmp_path: Path) -> None:
    options = ["train", "--model", "mlp", "--stages", "3", "--epochs", "4000", "--plain", *EVERY]
    command = [sys.executable, "-m", "pipelocal", *options]
    out = tmp_path / "run"
    process = _start(command, out, tmp_path / "log")
    try:
        other = subprocess.run(
            [*command, "--out", str(out)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert other.returncode == 2
        assert "is in use by a run that still goes on" in other.stderr
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
