"""``--lr``: one learning rate, or one for each stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelocal import cli
from pipelocal.config import TrainConfig, read_toml
from pipelocal.config.checks import validate
from pipelocal.errors import UserError
from tests.test_transparency import train_alone


def test_every_stage_has_its_own_rate(tmp_path: Path) -> None:
    """Also when the run goes on in another cut, with other rates."""
    options = ["--model", "mlp", "--schedule", "constant", "--max-steps", "4"]
    run = train_alone([*options, "--stages", "3", "--lr", "0.001,0.01,0.1"], tmp_path / "run")
    assert rates(run) == {1: 0.001, 2: 0.01, 3: 0.1}
    more = ["--resume", str(run), "--stages", "2", "--lr", "0.2,0.3", "--max-steps", "8"]
    assert rates(train_alone(more, tmp_path / "more")) == {1: 0.2, 2: 0.3}


def rates(run: Path) -> dict[int, float]:
    """The learning rate of every stage, by the run's last records."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {r["stage"]: r["learning_rate"] for r in records if r["event"] == "train"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"lr": "0.1,0.2"},
            "--lr 0.1,0.2: give one number, or 4 with commas between them, one for",
        ),
        ({"lr": "0.1,0.2", "objective": "bp"}, "--lr 0.1,0.2: give one number"),
        ({"lr": "0.1,0,0.1,0.1"}, "--lr 0.1,0,0.1,0.1: give a number above 0"),
        ({"lr": "0.1,nan,0.1,0.1"}, "--lr 0.1,nan,0.1,0.1: give a number above 0"),
        ({"lr": "0.1,1e400,0.1,0.1"}, "give a number above 0, at most 1e+30"),
        ({"lr": "0.1,,0.1,0.1"}, "give a number, or one for each stage with commas between them"),
        ({"lr": "quick"}, "--lr quick: give a number, or one for each stage with commas between"),
        ({"lr": ""}, "give a number, or one for each stage"),
    ],
    ids=str,
)
def test_rates_that_are_none(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        validate(TrainConfig(**options))
    assert str(error.value).startswith(said) or said in str(error.value)


def test_too_many_for_a_cut_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "mlp", "--cut", "1,5", "--lr", "1,2,3", "--out", str(tmp_path / "run")]
    assert cli.run(["train", *options]) == 2
    assert "--lr 1,2,3: give one number, or 2 with commas" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_in_a_file(tmp_path: Path) -> None:
    """A number is one, whole or not, and several are text."""
    file = tmp_path / "run.toml"
    for text, value in (("1", 1.0), ("0.5", 0.5), ('"0.1,0.2"', "0.1,0.2")):
        file.write_text(f"lr = {text}\n")
        assert read_toml(str(file)) == {"lr": value}
        assert type(read_toml(str(file))["lr"]) is type(value)
    file.write_text("lr = true\n")
    with pytest.raises(UserError, match="'lr' must be of type float"):
        read_toml(str(file))
