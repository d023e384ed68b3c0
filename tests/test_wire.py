"""``--wire``: how x travels, over ranks and within a process."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelocal import cli
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from tests.launching import launch, run_ranks
from tests.test_transparency import assert_same_bits, train_alone

FORMS = ["float32", "bf16", "int8"]
STEPS = ["--stages", "4", "--max-steps", "25", "--objective", "sgr"]


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


@pytest.mark.parametrize(
    "wire", ["int8", *(pytest.param(f, marks=pytest.mark.slow) for f in FORMS if f != "int8")]
)
def test_ranks_equal_one_process(tmp_path: Path, wire: str) -> None:
    """Reconciliation and evaluations included; 25 batches reach into a second epoch."""
    arguments = [*STEPS, "--wire", wire, "--reconcile-every", "3"]
    alone = train_alone(arguments, tmp_path / "alone")
    for size in (2, 4):
        out = tmp_path / f"ranks-{size}"
        run_ranks(tmp_path / f"log-{size}", ["train", *arguments, "--out", str(out)], size)
        assert_same_bits(alone, out)
        for key in ("sent_bytes", "received_bytes"):
            assert [s[key] for s in summary(out)["stages"]] == [
                s[key] for s in summary(alone)["stages"]
            ]


@pytest.mark.slow
def test_only_the_stages_behind_an_edge_are_affected(tmp_path: Path) -> None:
    """What a stage trains by is its own output, not what became of it on the wire."""
    runs = {
        wire: train_alone([*STEPS, "--objective", "greedy", "--wire", wire], tmp_path / wire)
        for wire in FORMS
    }

    def stage(wire: str, number: int) -> dict[str, torch.Tensor]:
        state = torch.load(runs[wire] / "stages" / f"stage-{number}.pt", weights_only=True)
        found: dict[str, torch.Tensor] = state["body"] | state["head"]
        return found

    def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(value, other[name]) for name, value in one.items())

    for wire in ("bf16", "int8"):
        assert equal(stage(wire, 1), stage("float32", 1))
        assert not equal(stage(wire, 2), stage("float32", 2))


@pytest.mark.parametrize("wire", FORMS)
def test_evaluate_repeats_the_trainings_last_figures(
    tmp_path: Path, wire: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the run's own wire: with another the losses differ."""
    run = train_alone([*STEPS, "--wire", wire], tmp_path / "run")
    last = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if '"event": "evaluate"' in line
    ][-4:]
    capsys.readouterr()
    assert cli.run(["evaluate", str(run), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [s["loss"] for s in again["stages"]] == [r["loss"] for r in last]
    if wire != "float32":
        config = (run / "config.toml").read_text()
        assert tomllib.loads(config)["wire"] == wire
        (run / "config.toml").write_text(config.replace(f'wire = "{wire}"', 'wire = "float32"'))
        assert cli.run(["evaluate", str(run), "--json"]) == 0
        other = json.loads(capsys.readouterr().out)
        assert [s["loss"] for s in other["stages"]] != [r["loss"] for r in last]


@pytest.mark.parametrize(
    ("wire", "row"),
    [
        pytest.param("float32", 4 * 1024, marks=pytest.mark.slow),
        pytest.param("bf16", 2048, marks=pytest.mark.slow),
        ("int8", 1028),
    ],
)
def test_the_plan_and_the_run_count_the_same_bytes(
    tmp_path: Path, wire: str, row: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row of x behind resnet8's stem and first block has 16 x 8 x 8 numbers."""
    cut = ["--cut", "block1,block2", "--objective", "greedy", "--wire", wire, "--batch-size", "32"]
    options = ["--model", "resnet8", "--data", "digits", *cut]
    assert cli.run(["plan", *options, "--device", "meta", "--json"]) == 0
    planned = [s["sent_bytes"] for s in json.loads(capsys.readouterr().out)["stages"]]
    assert planned == [32 * (row + 16), 32 * (row + 16), 0], (
        "a label and an id for each sample, too"
    )
    run = train_alone([*options, "--max-steps", "2", "--evaluate-every", "9"], tmp_path / "run")
    sent = [s["sent_bytes"] for s in summary(run)["stages"]]
    # Labels and ids too, and at the end an evaluation on 355 rows with labels and votes.
    assert sent[0] == 2 * 32 * (row + 16) + 355 * (row + 8 + 40)


def test_ranks_that_were_given_different_wires_say_so(tmp_path: Path) -> None:
    common = ["train", "--stages", "2", "--max-steps", "1", "--out", str(tmp_path / "run")]
    ranks = launch(tmp_path / "log", [[*common, "--wire", "bf16"], [*common, "--wire", "int8"]], 2)
    assert 0 not in ranks.wait()
    assert '--wire ("bf16" on rank 0, "int8" on rank 1)' in ranks.output()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "plan"])
def test_an_unknown_form_is_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--wire", "fp8"]) == 2
    assert "unknown wire form 'fp8': choose one of float32, bf16, int8" in capsys.readouterr().err


def test_a_unit_that_makes_integers_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Steps(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.round().long()\n"
        "def steps(input_shape, classes):\n"
        "    return nn.Sequential(Steps(), nn.Flatten(), nn.Linear(64, classes))\n"
    )
    config = TrainConfig(model=f"{tmp_path / 'mine.py'}:steps", stages=2)
    with pytest.raises(
        ValueError, match=r"unit '0' makes torch.int64: what a unit passes on first"
    ):
        blueprint_of(config)
