"""Snapshots by marker, and going on from them: nothing lost, and the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelocal import cli
from pipelocal.checkpoint.snapshot import SnapshotFolder, load_stage, verify
from tests.interrupted import BASE, EVERY, train_until
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, train_alone


def test_taking_snapshots_changes_no_bit(tmp_path: Path, uninterrupted: Path) -> None:
    out = tmp_path / "run"
    run_ranks(tmp_path / "log", ["train", *BASE, *EVERY, "--out", str(out)], 2)
    assert_same_bits(uninterrupted, out)
    folder = SnapshotFolder(out)
    assert folder.steps()[:2] == [60, 50]
    assert folder.folders()[0] == out / "stages", "the end is one of the three"
    for at, step in zip(folder.folders(), [69, 60, 50], strict=False):
        manifest = verify(at)
        assert manifest.step == step
        assert [file.stage for file in manifest.files] == [1, 2, 3]
        assert {load_stage(at, stage)["steps"] for stage in (1, 2, 3)} == {step}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    pauses = [record["pause_s"] for record in records if record["event"] == "snapshot"]
    assert len(pauses) >= 6 * 3


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
        pytest.param(["--optimizer", "adamw", "--warmup-steps", "20"], marks=pytest.mark.slow),
        pytest.param(["--freeze-stage", "1:12"], marks=pytest.mark.slow),
        ["--freeze-stage", "2:plateau=1"],
        ["--bp-free", "--stages", "6"],
        pytest.param(["--objective", "greedy", "--step-early"], marks=pytest.mark.slow),
        pytest.param(["--reconcile", "exact"], marks=pytest.mark.slow),
        pytest.param(
            ["--model", "vit_small", "--max-steps", "24", "--evaluate-every", "9"],
            marks=pytest.mark.slow,
        ),
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
