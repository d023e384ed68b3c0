"""Snapshots by marker, and going on from them: nothing lost, and the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipelocal import cli
from pipelocal.checkpoint.repartition import HEAD
from pipelocal.checkpoint.snapshot import BadSnapshot, SnapshotFolder
from pipelocal.stage import Stage
from tests.ranks import run_ranks
from tests.test_recompute import assert_equal
from tests.test_transparency import assert_same_bits, train_alone

BASE = ["--model", "mlp", "--stages", "3", "--epochs", "3", "--log-every", "8"]
EVERY = ["--snapshot-every", "10"]


class Killed(BaseException):
    """In place of SIGKILL, for runs in this process."""


def train_until(
    step: int, arguments: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run in this process that ends for no reason before the update after ``step`` of them."""
    update = Stage.update

    def ending(stage: Stage) -> None:
        if stage.steps == step:
            raise Killed
        update(stage)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "update", ending)
        with pytest.raises(Killed):
            cli.run(["train", *arguments, "--out", str(out), "--plain"])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_alone(BASE, tmp_path_factory.mktemp("runs") / "uninterrupted")


def test_taking_snapshots_changes_no_bit(tmp_path: Path, uninterrupted: Path) -> None:
    out = tmp_path / "run"
    run_ranks(tmp_path / "log", ["train", *BASE, *EVERY, "--out", str(out)], 2)
    assert_same_bits(uninterrupted, out)
    folder = SnapshotFolder(out)
    assert folder.steps() == [69, 60, 50]
    for step in folder.steps():
        manifest = folder.verify(step)
        assert [file.stage for file in manifest.files] == [1, 2, 3]
        assert {folder.load_stage(step, stage)["steps"] for stage in (1, 2, 3)} == {step}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    pauses = [record["pause_s"] for record in records if record["event"] == "snapshot"]
    assert len(pauses) == 7 * 3


@pytest.mark.parametrize("step", [10, 23, 24, 68])
def test_a_run_goes_on_with_the_same_bits(
    tmp_path: Path, uninterrupted: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within epochs of 23 batches, at their ends, and right behind a marker."""
    out = tmp_path / "run"
    train_until(step, [*BASE, *EVERY], out, monkeypatch)
    assert_same_bits(uninterrupted, train_alone([*BASE, *EVERY], out))


@pytest.mark.parametrize(
    "options",
    [
        ["--accumulate", "4"],
        ["--optimizer", "adamw", "--warmup-steps", "20"],
        ["--freeze-stage", "1:12"],
        ["--freeze-stage", "2:plateau", "--freeze-patience", "1"],
        ["--bp-free", "--stages", "6"],
        ["--objective", "greedy", "--step-early"],
        ["--reconcile", "exact"],
        [
            "--model",
            "vit_small",
            "--data",
            "synthetic",
            "--train-samples",
            "640",
            "--max-steps",
            "24",
        ],
    ],
    ids=" ".join,
)
def test_what_else_a_snapshot_holds(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients between two updates, schedules, frozen stages, and what waits for a plateau."""
    arguments = [*BASE, *options, *EVERY]
    whole = train_alone(arguments, tmp_path / "whole")
    train_until(22, arguments, tmp_path / "run", monkeypatch)
    assert_same_bits(whole, train_alone(arguments, tmp_path / "run"))


def test_without_a_snapshot_it_begins_anew(
    tmp_path: Path,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    train_until(5, [*BASE, *EVERY], out, monkeypatch)
    assert_same_bits(uninterrupted, train_alone([*BASE, *EVERY], out))
    assert "there is no snapshot" in capsys.readouterr().err


def test_records_read_like_those_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_alone([*BASE, *EVERY], tmp_path / "whole")
    train_until(38, [*BASE, *EVERY], tmp_path / "run", monkeypatch)
    run = train_alone([*BASE, *EVERY], tmp_path / "run")
    steps = []
    for path in (whole, run):
        records = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
        steps.append(
            sorted((r["event"], r["stage"], r["step"]) for r in records if r["event"] == "evaluate")
        )
    assert steps[0] == steps[1]


def test_another_run_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train_until(15, [*BASE, *EVERY], out, monkeypatch)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = ["train", *BASE, *EVERY, "--lr", "0.05", "--out", str(out), "--plain"]
    assert cli.run(other) == 2
    assert "--lr (0.1 there, 0.05 here)" in capsys.readouterr().err
    assert cli.run(["train", *BASE, "--resume", "never", "--out", str(out), "--plain"]) == 2
    assert "already holds another run" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert before == after


# Another cut


def _parameters(run: Path, step: int) -> dict[str, dict[str, Any]]:
    """Every trained parameter of the bodies, and what the optimizer knows of it, by name."""
    folder = SnapshotFolder(run)
    found = {}
    for file in folder.verify(step).files:
        state = folder.load_stage(step, file.stage)
        for i, name in enumerate(state["names"]):
            if not name.startswith(HEAD):
                known = state["training"]["optimizer"]["state"][i]
                found[name] = {"value": state["body"][name], **known}
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_four_stages_go_on_as_two_and_then_as_three(
    tmp_path: Path,
    optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bodies and what the optimizer knows, by name and value; the snapshot is of the same batch."""
    out = tmp_path / "run"
    base = ["--model", "mlp", "--epochs", "3", "--optimizer", optimizer, "--lr", "0.01", *EVERY]
    train_until(15, [*base, "--stages", "4"], out, monkeypatch)
    of_four = _parameters(out, 10)
    load = Stage.load_training_state
    loaded: dict[str, dict[str, Any]] = {}

    def noting(stage: Stage, *args: Any, **kwargs: Any) -> None:
        load(stage, *args, **kwargs)
        for name, parameter in stage.body.named_parameters():
            state = stage.optimizer.state[parameter]
            copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
            loaded[name] = {"value": parameter.detach().clone(), **copies}

    monkeypatch.setattr(Stage, "load_training_state", noting)
    train_until(25, [*base, "--stages", "2"], out, monkeypatch)
    assert "heads that begin anew: behind layer3;" in capsys.readouterr().err
    assert loaded.keys() == of_four.keys()
    assert_equal(dict(loaded), dict(of_four))
    of_two = _parameters(out, 20)
    loaded.clear()
    run_folder = train_alone([*base, "--stages", "3"], out)
    said = capsys.readouterr().err
    assert "heads that begin anew: behind layer2, behind layer4;" in said
    assert_equal(dict(loaded), dict(of_two))
    summary = json.loads((run_folder / "summary.json").read_text())
    assert [stage["steps"] for stage in summary["stages"]] == [69, 69, 69]
    assert cli.run(["evaluate", str(out)]) == 0


def test_another_cut_over_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    train_until(15, ["--model", "mlp", "--stages", "4", "--epochs", "1", *EVERY], out, monkeypatch)
    shutil.copytree(out, tmp_path / "copy")
    options = ["--model", "mlp", "--stages", "3", "--epochs", "1", *EVERY]
    run_ranks(tmp_path / "log", ["train", *options, "--out", str(out)], 3)
    assert_same_bits(train_alone(options, tmp_path / "copy"), out)


# Snapshots that cannot be trusted


def _truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


def _flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def _edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


STAGE, MANIFEST = "stage-2.pt", "manifest.json"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "stage file gone": lambda at: (at / STAGE).unlink(),
    "stage file empty": lambda at: _truncate(at / STAGE, 0),
    "stage file one byte short": lambda at: _truncate(at / STAGE, (at / STAGE).stat().st_size - 1),
    "stage file torn in the middle": lambda at: _truncate(at / STAGE, 1000),
    "stage file longer": lambda at: (at / STAGE).open("ab").write(b"x"),
    "first bit flipped": lambda at: _flip(at / STAGE, 0.0),
    "bit in the middle flipped": lambda at: _flip(at / STAGE, 0.5),
    "last bit flipped": lambda at: _flip(at / STAGE, 1.0),
    "another stage's file": lambda at: shutil.copy(at / "stage-1.pt", at / STAGE),
    "the same stage of another step": lambda at: shutil.copy(
        at.parent / "step-00000010" / STAGE, at / STAGE
    ),
    "zeros": lambda at: (at / STAGE).write_bytes(bytes((at / STAGE).stat().st_size)),
    "text": lambda at: (at / STAGE).write_text("hello"),
    "stage file is a folder": lambda at: shutil.move(at / STAGE, at / "x") and (at / STAGE).mkdir(),  # type: ignore[func-returns-value]
    "manifest empty": lambda at: _truncate(at / MANIFEST, 0),
    "manifest torn": lambda at: _truncate(at / MANIFEST, 100),
    "manifest is no JSON": lambda at: (at / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "manifest is a list": lambda at: (at / MANIFEST).write_text("[]"),
    "manifest of another step": lambda at: shutil.copy(
        at.parent / "step-00000010" / MANIFEST, at / MANIFEST
    ),
    "manifest of another format": lambda at: _edit(at / MANIFEST, lambda c: c.update(format=99)),
    "manifest without files": lambda at: _edit(at / MANIFEST, lambda c: c.update(files=[])),
    "manifest without a stage": lambda at: _edit(at / MANIFEST, lambda c: c["files"].pop(1)),  # type: ignore[attr-defined]
    "manifest with another checksum": lambda at: _edit(
        at / MANIFEST,
        lambda c: c["files"][1].update(sha256="0" * 64),  # type: ignore[index]
    ),
    "manifest with more keys": lambda at: _edit(at / MANIFEST, lambda c: c.update(more=1)),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with snapshots after 10 and 20 batches, and no end."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        train_until(25, [*BASE, *EVERY], out, patch)
    assert SnapshotFolder(out).steps() == [20, 10]
    return out


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_bad_snapshot_is_named_and_not_used(
    tmp_path: Path, stopped: Path, damage: Callable[[Path], object]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    newest = run / "snapshots" / "step-00000020"
    damage(newest)
    with pytest.raises(BadSnapshot, match="step-00000020"):
        SnapshotFolder(run).verify(20)
    assert SnapshotFolder(run).verify(10).step == 10


def test_the_one_before_is_used(
    tmp_path: Path, stopped: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    _flip(run / "snapshots" / "step-00000020" / "stage-3.pt", 0.5)
    assert_same_bits(uninterrupted, train_alone([*BASE, *EVERY], run))
    lines = capsys.readouterr().err.splitlines()
    assert sum(
        "a snapshot is left out" in line and "stage-3.pt was changed" in line for line in lines
    )
    assert any("going on after batch 10" in line for line in lines)


# Real ranks, really killed


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


@pytest.mark.parametrize("rank", [0, 1])
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
        deadline = time.monotonic() + 60
        while not SnapshotFolder(out).steps() and time.monotonic() < deadline:
            time.sleep(0.01)
        victim = _process_of(rank, out)
        assert victim is not None
        victim.send_signal(signal.SIGKILL)
        assert launcher.wait(90) == 0, (tmp_path / "log").read_text()
    finally:
        launcher.kill()
        launcher.wait()
    assert "going on after batch" in (tmp_path / "log").read_text()
    assert_same_bits(uninterrupted, out)


def _start(command: list[str], out: Path, log: Path) -> subprocess.Popen[bytes]:
    """Started, and its first snapshot taken."""
    with log.open("ab") as file:
        process = subprocess.Popen([*command, "--out", str(out)], stdout=file, stderr=file)
    deadline = time.monotonic() + 60
    while not SnapshotFolder(out).steps() and time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("ranks", "number"), [(2, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_stops_with_a_snapshot(tmp_path: Path, ranks: int, number: int) -> None:
    """And within seconds; the same command then ends with the bits of a run without a pause."""
    options = ["train", "--model", "mlp", "--stages", "3", "--epochs", "20", "--plain", *EVERY]
    whole = train_alone(options[1:-3] + EVERY, tmp_path / "whole")
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    out, log = tmp_path / "run", tmp_path / "log"
    process = _start([*command, "pipelocal", *options], out, log)
    time.sleep(0.3)
    process.send_signal(number)
    started = time.monotonic()
    assert process.wait(30) != 0
    assert time.monotonic() - started < 15
    said = log.read_text()
    assert "the same command goes on from it" in said
    steps = SnapshotFolder(out).steps()[0]
    assert f"a snapshot after batch {steps} is in" in said
    assert 10 <= steps < 460
    assert SnapshotFolder(out).verify(steps).step == steps
    with log.open("ab") as file:
        again = subprocess.run(
            [*command, "pipelocal", *options, "--out", str(out)],
            stdout=file,
            stderr=file,
            check=False,
            timeout=90,
        )
    assert again.returncode == 0, log.read_text()
    assert_same_bits(whole, out)


def test_sigusr1_asks_for_a_snapshot(tmp_path: Path) -> None:
    options = ["train", "--model", "mlp", "--stages", "3", "--epochs", "30", "--plain"]
    command = [sys.executable, "-m", "pipelocal", *options, "--snapshot-every", "100"]
    process = _start(command, tmp_path / "run", tmp_path / "log")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = {r["step"] for r in records if r["event"] == "snapshot"}
    assert len([step for step in steps if step % 100 and step != 690]) == 1


def test_snapshots_by_time(tmp_path: Path) -> None:
    out = train_alone([*BASE, "--snapshot-minutes", "0.000001"], tmp_path / "run")
    assert SnapshotFolder(out).steps() == [69, 68, 67]


def test_a_run_that_goes_on_has_its_folder_for_itself(tmp_path: Path) -> None:
    options = ["train", "--model", "mlp", "--stages", "3", "--epochs", "200", "--plain", *EVERY]
    command = [sys.executable, "-m", "pipelocal", *options]
    out = tmp_path / "run"
    process = _start(command, out, tmp_path / "log")
    try:
        other = subprocess.run(
            [*command, "--out", str(out)], capture_output=True, text=True, check=False, timeout=60
        )
        assert other.returncode == 2
        assert "is in use by a run that still goes on" in other.stderr
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
