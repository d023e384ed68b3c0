"""A new run from a snapshot of another one: ``--resume PATH``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipelocal import cli
from pipelocal.stage.stage import Stage
from tests.interrupted import BASE, EVERY, train_until
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, train_alone


@pytest.mark.parametrize("where", ["", "snapshots/step-00000010", "snapshots/step-00000020/"])
def test_the_same_options_give_the_same_bits(
    tmp_path: Path,
    stopped: Path,
    uninterrupted: Path,
    where: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    out = tmp_path / "run"
    run_ranks(
        tmp_path / "log", ["train", *BASE, "--resume", f"{stopped}/{where}", "--out", str(out)], 2
    )
    assert_same_bits(uninterrupted, out)
    batch = 10 if "10" in where else 20
    said = (tmp_path / "log" / "rank-0.log").read_text()
    assert f"beginning after batch {batch} of {stopped}" in said
    after = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert before == after


def test_other_options_are_told_and_count(
    tmp_path: Path,
    stopped: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates = []
    update = Stage.update

    def noting(stage: Stage, due: int | None = None) -> None:
        rates.append(stage.optimizer.param_groups[0]["lr"])
        update(stage, due)

    monkeypatch.setattr(Stage, "update", noting)
    other = ["--lr", "0.02", "--schedule", "constant", "--epochs", "2", "--accumulate", "2"]
    out = train_alone([*BASE, *other, "--resume", str(stopped)], tmp_path / "run")
    said = capsys.readouterr().err
    assert "--lr (0.1 there, 0.02 here)" in said
    assert "--epochs (3 there, 2 here)" in said
    assert set(rates) == {0.02}
    summary = json.loads((out / "summary.json").read_text())
    assert [stage["steps"] for stage in summary["stages"]] == [46, 46, 46]


def test_an_interrupted_one_goes_on_with_its_own_snapshots(
    tmp_path: Path,
    stopped: Path,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same command, again and again, as a job that is requeued."""
    out = tmp_path / "run"
    command = [*BASE, *EVERY, "--resume", str(stopped)]
    train_until(22, command, out, monkeypatch)  # before a snapshot of its own
    train_until(45, command, out, monkeypatch)
    capsys.readouterr()
    assert_same_bits(uninterrupted, train_alone(command, out))
    assert f"going on after batch 40 of {out}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "resnet8"], "do not go together: --model (mlp there, resnet8 here)"),
        (["--optimizer", "adamw"], "--optimizer (sgd there, adamw here)"),
        (["--head", "mlp"], "do not go together: --head"),
        (["--max-steps", "15"], "the snapshot is of batch 20"),
    ],
    ids=str,
)
def test_what_does_not_fit(
    tmp_path: Path,
    stopped: Path,
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    command = ["train", *BASE, *options, "--resume", str(stopped), "--out", str(out)]
    assert cli.run(command) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_where_there_is_none(
    tmp_path: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(stopped, torn)
    torch.save({}, torn / "snapshots" / "step-00000020" / "stage-1.pt")
    for path, said in [
        (tmp_path / "nowhere", "there is no run in"),
        (stopped / "snapshots" / "step-00000015", "cannot be read"),
        (torn / "snapshots" / "step-00000020", "stage-1.pt is damaged"),
    ]:
        out = str(tmp_path / "run")
        assert cli.run(["train", *BASE, "--resume", str(path), "--out", out]) == 2
        assert said in capsys.readouterr().err
