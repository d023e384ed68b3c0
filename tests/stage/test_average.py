"""Averaged weights: by the formula, the same over ranks, and through snapshots and other cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pipelocal
from pipelocal import cli
from pipelocal.checkpoint.snapshot import load_stage
from pipelocal.stage.ema import Average
from pipelocal.stage.stage import Stage
from tests.interrupted import BASE, EVERY, train_until
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, train_alone


def test_by_the_formula() -> None:
    """average = decay * average + (1 - decay) * weights, from the first update on; counts are copied."""
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = Average([module], 0.75)
    expected = None
    for _ in range(4):
        with torch.no_grad():
            module(torch.randn(5, 3))  # moves the buffers
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        now = {name: value.clone() for name, value in module.state_dict().items()}
        average.update()
        if expected is None:
            expected = now
        else:
            expected = {
                name: 0.75 * expected[name] + 0.25 * value if value.is_floating_point() else value
                for name, value in now.items()
            }
        with average.in_place():
            averaged = {name: value.clone() for name, value in module.state_dict().items()}
        torch.testing.assert_close(averaged, expected)
        assert all(torch.equal(value, now[name]) for name, value in module.state_dict().items())


EMA = [*BASE, "--ema", "0.9"]


@pytest.fixture(scope="module")
def averaged_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_alone(EMA, tmp_path_factory.mktemp("runs") / "run")


def _averaged(run: Path, stage: int) -> dict[str, Any]:
    averaged: dict[str, Any] = load_stage(run / "stages", stage)["averaged"]
    return averaged


def test_it_changes_no_weight_and_is_the_same_over_ranks(
    tmp_path: Path, averaged_run: Path, uninterrupted: Path
) -> None:
    plain, averaging = (
        pipelocal.plain_state_dict(str(run)) for run in (uninterrupted, averaged_run)
    )
    assert all(torch.equal(plain[name], averaging[name]) for name in plain)
    out = tmp_path / "run"
    run_ranks(tmp_path / "log", ["train", *EMA, "--out", str(out)], 3)
    assert_same_bits(averaged_run, out)
    assert _averaged(out, 2)["updates"] == 69


def test_it_counts_updates_and_not_batches(tmp_path: Path) -> None:
    out = train_alone([*EMA, "--accumulate", "4"], tmp_path / "run")
    assert _averaged(out, 1)["updates"] == 3 * 6  # 23 batches an epoch


def test_through_a_snapshot(
    tmp_path: Path, averaged_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    train_until(24, [*EMA, *EVERY], out, monkeypatch)
    assert_same_bits(averaged_run, train_alone([*EMA, *EVERY], out))


def test_through_another_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The units' averages, and those of the heads that stay, are found again by name and value."""
    base = ["--model", "mlp", "--epochs", "2", "--ema", "0.9", *EVERY]
    out = tmp_path / "run"
    train_until(15, [*base, "--stages", "4"], out, monkeypatch)
    snapshot = out / "snapshots" / "step-00000010"
    before: dict[str, torch.Tensor] = {}
    for number in (1, 2, 3, 4):
        before |= torch.load(snapshot / f"stage-{number}.pt", weights_only=True)["averaged"]["body"]
    found: dict[str, torch.Tensor] = {}
    load = Stage.load_training_state

    def noting(stage: Stage, *args: Any, **kwargs: Any) -> None:
        load(stage, *args, **kwargs)
        assert stage.average is not None
        assert stage.average.updates == 10
        with stage.average.in_place():
            found.update({n: v.clone() for n, v in stage.body.state_dict().items()})

    monkeypatch.setattr(Stage, "load_training_state", noting)
    run = train_alone([*base, "--stages", "2"], out)
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], before[name]) for name in before)
    assert _averaged(run, 2)["updates"] == 46


def test_evaluate_takes_it(averaged_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(averaged_run), "--json"]) == 0
    of_weights = capsys.readouterr().out
    assert cli.run(["evaluate", str(averaged_run), "--json", "--averaged"]) == 0
    of_average = capsys.readouterr().out
    assert of_weights != of_average


@pytest.mark.parametrize("decay", ["0", "1", "-0.5", "nan"])
def test_decays_that_cannot_be(decay: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "--ema", decay]) == 2
    assert "give a number between 0 and 1" in capsys.readouterr().err
