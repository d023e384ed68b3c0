"""Going on with another cut: nothing of a unit is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelocal import cli
from pipelocal.checkpoint.snapshot import SnapshotFolder, load_stage, verify
from pipelocal.stage.finite import HEAD
from pipelocal.stage.stage import Stage
from tests.interrupted import EVERY, train_until
from tests.launching import run_ranks
from tests.stage.test_recompute import assert_equal
from tests.test_transparency import assert_same_bits, train_alone


def _parameters(run: Path, step: int) -> dict[str, dict[str, Any]]:
    """Every trained parameter of the bodies, and what the optimizer knows of it, by name."""
    folder = SnapshotFolder(run).at(step)
    found = {}
    for file in verify(folder).files:
        state = load_stage(folder, file.stage)
        for i, name in enumerate(state["names"]):
            if not name.startswith(HEAD):
                known = state["optimizer"]["state"][i]
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
