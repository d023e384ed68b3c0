"""Whether the heads' votes travel in evaluations, and what stands in their place."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelocal import cli
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.pipeline.votes import Votes
from pipelocal.run.contracts import Contracts
from tests.launching import run_ranks

NARROW = """
from torch import nn
def net(shape, classes):
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 32))
    return nn.Sequential(first, nn.Linear(32, 4), nn.Linear(4, 8), nn.Linear(8, classes))
"""
"""10 votes of a sample are fewer bytes than what leaves the first unit, and more than from the second."""


@pytest.fixture
def narrow(tmp_path: Path) -> str:
    file = tmp_path / "narrow.py"
    file.write_text(NARROW)
    return f"{file}:net"


def _votes(model: str, *, option: Any = "auto", stages: int = 3) -> Votes:
    config = TrainConfig(model=model, stages=stages, votes=option)
    blueprint = blueprint_of(config)
    return Contracts(config, blueprint, batch_size=64).votes


def test_one_dear_edge_decides_for_all(narrow: str) -> None:
    """The ensemble is of all heads or of none; two stages are cut where all is cheap or where it is not."""
    votes = _votes(narrow)
    assert not votes.travel
    assert votes.why_not is not None
    assert "40 B a sample, the activations from stage 2 to 3 16 B" in votes.why_not
    assert _votes("mlp").travel
    assert _votes(narrow, stages=1).travel  # which sends none
    assert _votes(narrow, option="on") == Votes(travel=True)
    assert "--votes off" in str(_votes("mlp", option="off").why_not)


def _train(model: str, out: Path, *more: str) -> None:
    arguments = ["train", "--model", model, "--stages", "3", "--max-steps", "3", "--plain"]
    assert cli.run([*arguments, "--out", str(out), *more]) == 0


def _summary(out: Path) -> Any:
    return json.loads((out / "summary.json").read_text())


def _weights(out: Path) -> dict[str, bytes]:
    """All that was trained, stage by stage; beside it each file holds what the evaluation found."""
    states = {k: torch.load(out / "stages" / f"stage-{k}.pt") for k in (1, 2, 3)}
    return {
        f"{k}/{part}/{name}": value.numpy().tobytes()
        for k, state in states.items()
        for part in ("body", "head")
        for name, value in state[part].items()
    }


def test_without_votes_training_is_the_same_and_the_reason_is_told(
    narrow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(narrow, tmp_path / "auto")
    out = capsys.readouterr().out
    assert "(last head), - (ensemble)" in out
    assert "no ensemble: its votes are 40 B a sample" in out
    _train(narrow, tmp_path / "on", "--votes", "on")
    assert "no ensemble" not in capsys.readouterr().out
    auto, on = _summary(tmp_path / "auto"), _summary(tmp_path / "on")
    assert auto["ensemble_accuracy"] is None
    assert auto["no_ensemble"].startswith("no ensemble")
    assert 0 <= on["ensemble_accuracy"] <= 1
    assert on["no_ensemble"] is None
    assert auto["eval_accuracy"] == on["eval_accuracy"]
    assert auto["stages"][0]["sent_bytes"] < on["stages"][0]["sent_bytes"]
    assert _weights(tmp_path / "auto") == _weights(tmp_path / "on")

    # One process sends nobody anything, so that it need not do without.
    assert cli.run(["evaluate", str(tmp_path / "auto"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["ensemble_accuracy"] == on["ensemble_accuracy"]


def test_ranks_find_the_same(
    narrow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(narrow, tmp_path / "alone", "--votes", "off")
    arguments = ["train", "--model", narrow, "--stages", "3", "--max-steps", "3"]
    run_ranks(tmp_path / "log", [*arguments, "--out", str(tmp_path / "ranks")], 3)
    assert _weights(tmp_path / "ranks") == _weights(tmp_path / "alone")
    alone, ranks = _summary(tmp_path / "alone"), _summary(tmp_path / "ranks")
    assert ranks["ensemble_accuracy"] is None
    assert ranks["stages"][1]["sent_bytes"] == alone["stages"][1]["sent_bytes"]
    capsys.readouterr()
    assert cli.run(["evaluate", str(tmp_path / "alone")]) == 0
    shown = capsys.readouterr().out
    assert "ensemble of heads                   accuracy -" in shown
    assert "no ensemble: --votes off" in shown
