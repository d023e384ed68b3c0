"""Stages with replicas train as the same options do in one process, whatever the counts."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelocal import cli
from pipelocal.partition.measured import Stopwatch
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, run_state, train_alone

MODELS = Path(__file__).parents[1] / "models_for_tests.py"
DROPOUT = ["--model", f"{MODELS}:dropout", "--lr", "0.05", "--max-steps", "40"]
"""Without BatchNorm, whose running statistics each replica gathers of its own batches; 23 batches an
epoch, which two replicas do not share out evenly."""

LOCO = ["--objective", "loco"]
PGL = ["--objective", "pgl", "--guide-every", "3"]
GUIDED = ["--objective", "greedy", "--head", "guided", "--guide-every", "5"]
"""With something that goes back, to the replica from which the batch came; of guided heads, to all."""


def train_over(ranks: int, arguments: list[str], out: Path) -> Path:
    log = out.with_name(f"{out.name}-log")
    run_ranks(log, ["train", *arguments, "--out", str(out), "--plain"], ranks)
    return out


def assert_close(run: Path, other: Path, tolerance: float) -> None:
    """Equal up to rounding: weights, optimizer state, and figures."""
    ours, theirs = run_state(run), run_state(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(value, theirs[name], rtol=tolerance, atol=tolerance), name
        elif isinstance(value, float):
            assert value == pytest.approx(theirs[name], rel=100 * tolerance), name
        else:
            assert value == theirs[name], name


@pytest.mark.parametrize("window", ["1", "2"])
def test_uneven_replicas_equal_one_process_bit_for_bit(tmp_path: Path, window: str) -> None:
    """Half of one sum and half of another are rounded like half of both."""
    options = [*DROPOUT, "--stages", "3", "--replicas", "1,2,1", "--objective", "greedy"]
    alone = train_alone(options, tmp_path / "alone")
    assert_same_bits(alone, train_over(4, [*options, "--window", window], tmp_path / "ranks"))


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (4, ["--stages", "4", "--replicas", "2", "--objective", "sgr", "--reconcile-every", "2"]),
        (6, ["--stages", "3", "--replicas", "2,3,1", "--objective", "sgr", "--batch-size", "31"]),
        (3, ["--stages", "1", "--replicas", "3", "--accumulate", "2", "--log-every", "7"]),
        (5, ["--stages", "2", "--replicas", "3,2", "--batch-size", "700", "--epochs", "5"]),
        (3, ["--stages", "2", "--replicas", "1,2", "--freeze-stage", "1:6,2:plateau"]),
        pytest.param(6, [*LOCO, "--stages", "3", "--replicas", "2,3,1"], marks=pytest.mark.slow),
        (4, [*PGL, "--stages", "2", "--replicas", "2"]),
        pytest.param(6, [*GUIDED, "--stages", "3", "--replicas", "2,3,1"], marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, int) else " ".join(value),
)
def test_replicas_equal_one_process(tmp_path: Path, ranks: int, options: list[str]) -> None:
    """Two stages a rank; counts that share no factor; several batches of a replica an update; epochs
    shorter than what the replicas share out; stages that stop training; ways back."""
    options = [*DROPOUT, *options]
    alone = train_alone(options, tmp_path / "alone")
    assert_close(alone, train_over(ranks, options, tmp_path / "ranks"), 1e-5)


def test_replicas_equal_one_with_so_many_times_the_batch(tmp_path: Path) -> None:
    options = ["--model", f"{MODELS}:inplace", "--stages", "2", "--train-samples", "1408"]
    options += ["--epochs", "1", "--lr", "0.05"]
    options += ["--objective", "sgr", "--reconcile", "exact", "--reconcile-every", "2"]
    one = train_alone([*options, "--batch-size", "64"], tmp_path / "one")
    two = train_over(4, [*options, "--batch-size", "32", "--replicas", "2"], tmp_path / "two")
    assert_same_weights(one, two, 1e-4)


def test_with_batchnorm_if_it_is_synchronised(tmp_path: Path) -> None:
    """Its statistics are those of the whole batch then, and the running ones too."""
    options = ["--model", "resnet8", "--stages", "2", "--lr", "0.02", "--objective", "greedy"]
    one = train_alone([*options, "--batch-size", "64", "--max-steps", "8"], tmp_path / "one")
    options += ["--batch-size", "32", "--replicas", "2", "--sync-batchnorm", "--max-steps", "17"]
    two = train_over(4, options, tmp_path / "two")
    assert json.loads((two / "summary.json").read_text())["steps"] == 16, "in whole rounds"
    assert_same_weights(one, two, 1e-3, but="num_batches_tracked")


def assert_same_weights(run: Path, other: Path, tolerance: float, but: str = "nothing") -> None:
    for number in (1, 2):
        ours, theirs = (
            torch.load(path / "stages" / f"stage-{number}.pt", weights_only=True)
            for path in (run, other)
        )
        for part in ("body", "head"):
            for name, value in ours[part].items():
                if but not in name:
                    torch.testing.assert_close(
                        value, theirs[part][name], rtol=tolerance, atol=tolerance
                    )


def test_fully_sharded_equals_one_process_and_is_saved_whole(tmp_path: Path) -> None:
    options = [*DROPOUT, "--stages", "2", "--optimizer", "adamw", "--lr", "0.005"]
    options += ["--replicas", "2", "--objective", "sgr", "--reconcile-every", "2"]
    alone = train_alone(options, tmp_path / "alone")
    over = train_over(4, [*options, "--replicate", "fsdp"], tmp_path / "ranks")
    assert_close(alone, over, 1e-4)
    assert cli.run(["evaluate", str(over)]) == 0
    assert cli.run(["export", str(over), "--to", str(tmp_path / "model.pt")]) == 0


def test_closed_forms_have_replicas_too(tmp_path: Path) -> None:
    options = ["--model", "mlp", "--stages", "6", "--bp-free", "--max-steps", "12", "--lr", "0.02"]
    options += ["--replicas", "2", "--objective", "greedy", "--evaluate-every", "9"]
    alone = train_alone(options, tmp_path / "alone")
    over = train_over(2, options, tmp_path / "ranks")
    for number in (1, 6):
        states = [
            torch.load(run / "stages" / f"stage-{number}.pt", weights_only=True)["head"]
            for run in (alone, over)
        ]
        for name, value in states[0].items():
            torch.testing.assert_close(value, states[1][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "compress", ["bf16", "powersgd", "sign", pytest.param("sparse-sign", marks=pytest.mark.slow)]
)
def test_compressed_gradients_train(tmp_path: Path, compress: str) -> None:
    """In fewer bytes, and well enough to be far from chance."""
    options = ["--model", "mlp", "--stages", "1", "--replicas", "2", "--objective", "greedy"]
    options += ["--max-steps", "60", "--lr", "0.02" if compress == "sign" else "0.05"]
    run = train_over(2, [*options, "--compress", compress], tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["eval_accuracy"] > 0.6
    state = torch.load(run / "stages" / "stage-1.pt", weights_only=True)
    numbers = sum(
        value.numel()
        for part in ("body", "head")
        for name, value in state[part].items()
        if "running" not in name and "tracked" not in name
    )
    of_each = (
        summary["stages"][0]["gradient_bytes"] / 2 / 31
    )  # two epochs of 12 and 12, 8 and 8 updates
    assert 0 < of_each < 2.6 * numbers, "of four bytes a number"


def test_every_stage_reports_once_for_all_its_replicas(tmp_path: Path) -> None:
    options = [*DROPOUT, "--stages", "3", "--replicas", "1,2,1", "--log-every", "99"]
    alone = train_alone(options, tmp_path / "alone")
    over = train_over(4, options, tmp_path / "ranks")

    def records(run: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    def key(record: dict[str, Any]) -> tuple[Any, ...]:
        return record["event"], record["stage"], record["step"]

    apart = ("begin", "final")
    ours = {key(record): record for record in records(over) if record["event"] not in apart}
    theirs = {key(record): record for record in records(alone) if record["event"] not in apart}
    assert ours.keys() == theirs.keys()
    for where, record in theirs.items():
        for name in ("loss", "accuracy", "epoch"):
            assert record[name] == pytest.approx(ours[where][name], rel=1e-4), (where, name)
    finals = Counter(r["stage"] for r in records(over) if r["event"] == "final")
    assert finals == {1: 1, 2: 2, 3: 1}
    summary = json.loads((over / "summary.json").read_text())
    assert [stage["stage"] for stage in summary["stages"]] == [1, 2, 3]
    replicas = summary["stages"][1]["replicas"]
    assert [replica["rank"] for replica in replicas] == [1, 2]
    assert summary["stages"][1]["received_bytes"] == summary["stages"][0]["sent_bytes"]


@pytest.fixture
def told_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units take the time that they say, whatever else the machine does; ranks inherit this."""

    def told(_: Stopwatch, module: nn.Module, *__: object, **___: object) -> tuple[float, float]:
        seconds = sum(getattr(part, "seconds", 0.0) for part in module.modules())
        return 0.001 + seconds, 0.001

    monkeypatch.setattr(Stopwatch, "seconds_of_pass", told)
    monkeypatch.setattr(Stopwatch, "seconds_of_step", lambda *_: 0.0)


@pytest.mark.usefixtures("told_times")
def test_a_cut_by_time_counts_replicas(tmp_path: Path) -> None:
    """A stage with two ranks can take two units where another one takes one."""
    options = ["--model", f"{MODELS}:two_sleep", "--stages", "3", "--balance", "time"]
    options += ["--max-steps", "1", "--objective", "greedy", "--head", "linear"]
    cuts: list[str] = []
    for replicas in ("1", "1,2,1"):
        run = train_alone([*options, "--replicas", replicas], tmp_path / f"run-{len(cuts)}")
        found = re.search(r'cut = "(.*)"', (run / "config.toml").read_text())
        assert found is not None
        cuts.append(found[1])
    assert cuts[0] != "u2,u4" == cuts[1]


@pytest.mark.usefixtures("told_times")
def test_auto_gives_the_slow_stage_the_replicas(tmp_path: Path) -> None:
    options = ["--model", f"{MODELS}:one_sleeps", "--stages", "3", "--replicas", "auto"]
    options += ["--max-steps", "4", "--objective", "greedy", "--head", "linear"]
    run = train_over(4, options, tmp_path / "run")
    assert 'replicas = "1,2,1"' in (run / "config.toml").read_text()
