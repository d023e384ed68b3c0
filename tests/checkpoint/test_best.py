"""Snapshots behind evaluations, and the best one, which stays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelocal import cli
from pipelocal.checkpoint.snapshot import Epochs, Evaluated, Manifest, SnapshotFolder
from pipelocal.pipeline import markers
from pipelocal.pipeline.evaluation import Evaluation
from tests.checkpoint.test_stopped import figures
from tests.interrupted import BASE, train_until
from tests.test_transparency import assert_same_bits, train_alone

SHOWN = {23: 0.9, 46: 0.5, 69: 0.6}
"""Accuracy that every evaluation is made to find, by the batch before it."""


@pytest.fixture
def behind_each_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the run, and whatever snapshots cost."""
    monkeypatch.setattr(markers, "LEAST_S", -1.0)
    monkeypatch.setattr(markers, "WORTH", 0.0)

    def waited_for(self: Any) -> float:
        self._writer._wait()  # or the price is not known, and there would be none
        return 0.0

    monkeypatch.setattr("pipelocal.run.snapshots.Snapshots.price", property(waited_for))


def _show(accuracies: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Evaluation.finish

    def showing(evaluation: Evaluation, step: int) -> dict[str, Any]:
        found = finish(evaluation, step)
        assert evaluation.reading is not None
        evaluation.reading = replace(evaluation.reading, metrics={"accuracy": accuracies[step]})
        return found | {"accuracy": accuracies[step]}

    monkeypatch.setattr(Evaluation, "finish", showing)


@pytest.mark.usefixtures("behind_each_evaluation")
def test_the_best_one_stays_beside_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _show(SHOWN, monkeypatch)
    out = tmp_path / "run"
    train_until(60, BASE, out, monkeypatch)
    assert SnapshotFolder(out).steps() == [46, 23]
    best = out / "snapshots" / "best"
    train_alone(BASE, out)
    assert SnapshotFolder(out).steps() == [23], "better than the end"
    capsys.readouterr()
    for named in (best, out / "snapshots" / "step-00000023"):
        file = str(tmp_path / "best.pt")
        assert cli.run(["export", str(named), "--to", file]) == 0
        assert "the weights after batch 23, before the end" in capsys.readouterr().err
        exported = torch.load(file, weights_only=True)
        state = torch.load(out / "snapshots" / "step-00000023" / "stage-1.pt", weights_only=True)
        assert all(torch.equal(exported[name], value) for name, value in state["body"].items())
    longer = ["--resume", str(best), "--out", str(tmp_path / "longer"), "--plain"]
    assert cli.run(["train", *longer]) == 0
    assert f"beginning after batch 23 of {out}" in capsys.readouterr().err


@pytest.mark.usefixtures("behind_each_evaluation")
def test_the_end_is_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equals the one with the lower loss is."""
    _show({23: 0.6, 46: 0.5, 69: 0.6}, monkeypatch)
    out = train_alone(BASE, tmp_path / "run")
    assert SnapshotFolder(out).folders() == [out / "stages"]
    best = str(out / "snapshots" / "best")
    assert cli.run(["export", best, "--to", str(tmp_path / "model.pt")]) == 0


@pytest.mark.parametrize("step", [23, 24, 46])
@pytest.mark.usefixtures("behind_each_evaluation")
def test_an_evaluation_before_the_snapshot_does_not_come_again(
    tmp_path: Path, uninterrupted: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    train_until(step, BASE, out, monkeypatch)
    assert_same_bits(uninterrupted, train_alone(BASE, out))
    assert figures(uninterrupted) == figures(out)


def test_one_behind_it_comes_again_and_is_recorded_once(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot is of batch 23, the records to forget are of the evaluation that followed."""
    options = [*BASE, "--snapshot-every", "23"]
    out = tmp_path / "run"
    train_until(30, options, out, monkeypatch)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert any(json.loads(line)["event"] == "evaluate" for line in lines)
    assert_same_bits(uninterrupted, train_alone(options, out))
    assert figures(uninterrupted) == figures(out)


@pytest.mark.usefixtures("behind_each_evaluation")
def test_a_run_lost_between_its_end_and_its_summary(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to train and to evaluate; the figures are known again."""
    out = train_alone(BASE, tmp_path / "run")
    (out / "summary.json").unlink()
    train_alone(BASE, out)
    assert_same_bits(uninterrupted, out)
    assert figures(uninterrupted) == figures(out)


def _manifest(evaluated: Evaluated | None) -> Manifest:
    epochs = Epochs(steps_per_epoch=10)
    return Manifest(step=10, cut=[], identity={}, epochs=epochs, evaluated=evaluated, files=())


def test_what_is_better_is_said_by_the_task() -> None:
    def quality(value: float | None, loss: float, *, higher: bool) -> tuple[float, float] | None:
        found = Evaluated(step=10, loss=loss, metric="m", value=value, higher_is_better=higher)
        return _manifest(found).quality

    assert quality(0.5, 2.0, higher=True) > quality(0.4, 1.0, higher=True)  # type: ignore[operator]
    assert quality(0.5, 2.0, higher=False) < quality(0.4, 3.0, higher=False)  # type: ignore[operator]
    assert quality(0.5, 2.0, higher=False) < quality(0.5, 1.0, higher=False)  # type: ignore[operator]
    assert quality(None, 1.0, higher=True) is None
    assert _manifest(None).quality is None


def test_a_manifest_of_an_earlier_version_knows_accuracy() -> None:
    found = Evaluated.of_json({"step": 10, "accuracy": 0.75, "loss": 2.0})
    assert found == Evaluated(step=10, loss=2.0, metric="accuracy", value=0.75)
    assert _manifest(found).quality == (0.75, -2.0)
