"""Options that would do nothing in so few stages are refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pipelocal import Pipeline, cli, objectives, tasks
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.errors import UserError

SUPCON = {"head_loss": "supcon"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({**SUPCON, "objective": "bp"}, "the uncut model has none: leave it out"),
        ({**SUPCON, "objective": "greedy", "stages": 1}, "a single stage has none: .* --stages 2"),
        (
            {"head_smoothing": 0.1, "objective": "bp"},
            "--head-smoothing .* the uncut model has none",
        ),
        ({**SUPCON, "stages": 1}, "a single stage has none"),
        ({"objective": "contsup", "stages": 1}, "ContSup .* one stage: give --stages 2 or more"),
        ({"objective": "infopro", "stages": 1}, "InfoPro .* one stage: give --stages 2 or more"),
        (
            {
                "objective": "infopro",
                "stages": 2,
                "objective_options": ("last_reconstruction=3", "last_task=2"),
            },
            "InfoPro: last_reconstruction and last_task would do nothing",
        ),
    ],
    ids=str,
)
def test_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        validate(TrainConfig(**options))


@pytest.mark.parametrize(
    "options",
    [
        {**SUPCON, "objective": "deep-supervision"},
        {**SUPCON, "objective": "bwbpf", "stages": 1},
        {"objective": "infopro", "stages": 3, "objective_options": ("last_reconstruction=3",)},
        {"objective": "infopro", "stages": 2, "objective_options": ("last_task=1",)},
        {"objective": "contsup", "stages": 2},
    ],
    ids=str,
)
def test_accepted(options: dict[str, Any]) -> None:
    validate(TrainConfig(**options))


def test_also_where_the_cut_says_how_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["--model", "resnet8", "--cut", "4", "--objective", "contsup", "--out", str(out)]
    assert cli.run(["train", *arguments]) == cli.USER_ERROR
    assert "there is one stage" in capsys.readouterr().err
    assert not out.exists()


def test_from_python() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    with pytest.raises(UserError, match="there is one stage"):
        Pipeline(net, stages=1, objective=objectives.InfoPro(target="input"))
    with pytest.raises(UserError, match="a single stage has none"):
        Pipeline(net, stages=1, head_task=tasks.SupCon())
