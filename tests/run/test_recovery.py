"""Real ranks, really killed and told to stop."""

from __future__ import annotations

import functools
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipelocal import cli
from pipelocal.checkpoint.snapshot import SnapshotFolder, verify
from tests.interrupted import BASE, EVERY
from tests.launching import PATIENCE_S, Ranks, launch, run_ranks, until
from tests.test_transparency import assert_same_bits, train_alone

RESTARTS = ["--max-restarts", "2", "-m", "pipelocal", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


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


@pytest.mark.slow  # the next test does the same with a way back
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_brings_a_killed_run_back(tmp_path: Path, uninterrupted: Path, rank: int) -> None:
    out = tmp_path / "run"
    command = [*TORCHRUN, "2", *RESTARTS, *BASE, *EVERY, "--plain"]
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


BACK = {
    "gradients": ["--objective", "pgl", "--guide-every", "2"],
    "weights": ["--objective", "greedy", "--head", "guided", "--guide-every", "4"],
}
"""What flows back."""
SHORT = ["--model", "resnet8", "--stages", "4", "--max-steps", "60", "--snapshot-every", "6"]
SHORT += ["--evaluate-every", "1"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, float]]:
    """Runs with a way back that nothing disturbs, and how long they take over ranks."""

    @functools.cache
    def trained(way: str) -> tuple[Path, float]:
        folder, options = tmp_path_factory.mktemp(way), [*BACK[way], *SHORT]
        started = time.monotonic()
        run_ranks(folder / "log", ["train", *options, "--plain", "--out", str(folder / "ranks")], 4)
        seconds = time.monotonic() - started
        return train_alone(options, folder / "alone"), seconds

    return trained


@pytest.mark.parametrize(
    ("way", "seed"),
    [
        ("gradients", 0),
        *(pytest.param("gradients", seed, marks=pytest.mark.slow) for seed in range(1, 50)),
        *(pytest.param("weights", seed, marks=pytest.mark.slow) for seed in range(50)),
    ],
)
def test_a_run_with_a_way_back_is_brought_back_from_any_moment(
    tmp_path: Path, undisturbed: Callable[[str], tuple[Path, float]], way: str, seed: int
) -> None:
    """A random rank of four is killed at a random moment between the launch and the end."""
    whole, seconds = undisturbed(way)
    options = [*BACK[way], *SHORT, "--plain"]
    chance = random.Random(seed)
    rank, moment = chance.randrange(4), chance.uniform(0.0, seconds)
    out = tmp_path / "run"
    with (tmp_path / "log").open("wb") as log:
        launcher = subprocess.Popen(
            [*TORCHRUN, "4", *RESTARTS, *options, "--out", str(out)], stdout=log, stderr=log
        )
    try:
        time.sleep(moment)
        until(lambda: launcher.poll() is not None or _process_of(rank, out) is not None)
        victim = _process_of(rank, out)
        if victim is not None:
            victim.send_signal(signal.SIGKILL)
        assert launcher.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
    finally:
        launcher.kill()
        launcher.wait()
    assert_same_bits(whole, out)


def _taken(out: Path, ranks: Ranks) -> Ranks:
    """The ranks, their first snapshot taken."""

    def taken() -> bool:
        assert all(process.is_alive() for process in ranks.processes), ranks.output()
        return bool(SnapshotFolder(out).steps())

    until(taken, ranks.output)
    return ranks


@pytest.mark.parametrize(
    ("size", "number", "more"),
    [
        (2, signal.SIGTERM, []),
        pytest.param(1, signal.SIGINT, [], marks=pytest.mark.slow),
        pytest.param(1, signal.SIGHUP, [], marks=pytest.mark.slow),
        pytest.param(2, signal.SIGHUP, [], marks=pytest.mark.slow),
        # Rank 1 has done its part before rank 2, which still has something to send back to it.
        pytest.param(3, signal.SIGTERM, ["--objective", "loco"], marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_with_a_snapshot(
    tmp_path: Path, size: int, number: int, more: list[str]
) -> None:
    """And the same command then ends with the bits of a run without a pause.

    Under torchrun, which passes the signal on, where there are two ranks.
    """
    work = ["--model", "mlp", "--stages", "3", "--epochs", "12", *more]
    whole = train_alone(work, tmp_path / "whole")
    out, log = tmp_path / "run", tmp_path / "log"
    options = ["train", *work, "--plain", *EVERY, "--out", str(out)]
    if size == 1:
        ranks = _taken(out, launch(log, options, 1))
        ranks.kill(0, number)
        (code,), said = ranks.wait(), ranks.output()
    else:
        command = [*TORCHRUN, str(size), "-m", "pipelocal", *options]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        until(lambda: process.poll() is not None or SnapshotFolder(out).steps())
        process.send_signal(number)
        said, _ = process.communicate(timeout=PATIENCE_S)
        code = process.returncode
    assert code != 0
    assert "the same command goes on from it" in said
    steps = SnapshotFolder(out).steps()[0]
    assert f"a snapshot after batch {steps} is in" in said
    assert 10 <= steps < 276
    assert verify(SnapshotFolder(out).at(steps)).step == steps
    run_ranks(log, options, size)
    assert_same_bits(whole, out)


def test_sigusr1_asks_for_a_snapshot(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["train", "--model", "mlp", "--stages", "3", "--epochs", "12", "--plain"]
    # An evaluation may be worth a snapshot as well: there is one, at the end.
    options += ["--evaluate-every", "12", "--snapshot-every", "100", "--out", str(out)]
    ranks = _taken(out, launch(tmp_path / "log", options, 1))
    ranks.kill(0, signal.SIGUSR1)
    assert ranks.wait() == [0]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = {r["step"] for r in records if r["event"] == "snapshot"}
    assert len([step for step in steps if step % 100 and step != 276]) == 1


def test_snapshots_by_time(tmp_path: Path) -> None:
    options = ["--snapshot-minutes", "0.000001", "--keep-snapshots", "3"]
    out = train_alone([*BASE, *options], tmp_path / "run")
    assert SnapshotFolder(out).steps()[:2] == [68, 67], "and the end"


def test_a_run_that_goes_on_has_its_folder_for_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["train", "--model", "mlp", "--stages", "3", "--epochs", "4000", "--plain", *EVERY]
    options += ["--out", str(out)]
    ranks = _taken(out, launch(tmp_path / "log", options, 1))
    try:
        assert cli.run(options) == cli.USER_ERROR
        assert "is in use by a run that still goes on" in capsys.readouterr().err
        assert ranks.processes[0].is_alive()
    finally:
        ranks.kill(0)
        ranks.wait()
