"""A full disk, a read-only folder, data that is gone: one clear line, and the last snapshot intact.

A real small file system, which takes root to mount.
"""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipelocal import cli
from pipelocal.checkpoint.snapshot import SnapshotFolder, verify
from tests.interrupted import EVERY, train_until
from tests.launching import launch, until
from tests.test_transparency import assert_same_bits, train_alone

LONG = ["--model", "mlp", "--stages", "3", "--epochs", "8", "--log-every", "8", *EVERY]
"""184 batches, with a snapshot after every 10."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    """Write until there is no room any more."""
    with suppress(OSError), file.open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(2**16))


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_disk_that_fills_up(tmp_path: Path, disk: Path, ranks: int) -> None:
    """While it trains; with room again the same command goes on, to the same bits."""
    run = disk / "run"
    under_way = launch(tmp_path, ["train", *LONG, "--plain", "--out", str(run)], ranks)
    until(lambda: len(SnapshotFolder(run).steps()) >= 2, under_way.output)
    fill(disk / "ballast")
    assert all(under_way.wait())
    said = [line for line in under_way.output().splitlines() if line.startswith("pipelocal")]
    reasons = [line for line in said if "cannot be written (No space left on device)" in line]
    assert reasons, under_way.output()
    assert str(run) in reasons[0]
    newest = SnapshotFolder(run).steps()[0]
    assert verify(SnapshotFolder(run).at(newest)).step == newest
    assert cli.run(["train", *LONG, "--plain", "--out", str(run)]) != 0  # as long as it is full
    (disk / "ballast").unlink()
    assert cli.run(["train", *LONG, "--plain", "--out", str(run)]) == 0
    assert_same_bits(train_alone(LONG, tmp_path / "whole"), run)


@pytest.mark.slow
def test_a_folder_that_is_read_only(
    tmp_path: Path,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train_until(25, LONG, disk / "run", monkeypatch)
    gc.collect()  # the lock of the run that ended
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for out in ("run", "new"):
        capsys.readouterr()
        assert cli.run(["train", *LONG, "--plain", "--out", str(disk / out)]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert f"{disk / out}" in line
        assert "Read-only file system" in line
    assert verify(SnapshotFolder(disk / "run").at(20)).step == 20
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert_same_bits(train_alone(LONG, tmp_path / "whole"), train_alone(LONG, disk / "run"))


def test_data_that_is_gone_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 100)
    options = ["--model", "gpt", "--data", "text16", "--data-root", str(text), "--stages", "2"]
    options += ["--batch-size", "8", "--epochs", "2", "--max-steps", "30", *EVERY]
    out = tmp_path / "run"
    train_until(15, options, out, monkeypatch)
    text.rename(tmp_path / "elsewhere.txt")
    assert cli.run(["train", *options, "--out", str(out), "--plain"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert str(text) in lines[0]
    assert verify(SnapshotFolder(out).at(10)).step == 10
    moved = [str(tmp_path / "elsewhere.txt") if o == str(text) else o for o in options]
    resumed = train_alone(moved, out)
    assert_same_bits(train_alone(moved, tmp_path / "whole"), resumed)
