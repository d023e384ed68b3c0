"""Loggers: given exactly what metrics.jsonl holds, while a run goes on; they never change or end it."""

from __future__ import annotations

import csv
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pipelocal as pl
from pipelocal import cli
from tests.interrupted import BASE, EVERY, train_until
from tests.launching import PATIENCE_S, run_ranks
from tests.loggers.mine import Half, Keeps
from tests.test_transparency import assert_same_bits, train_alone

MINE = "tests.loggers.mine"
TIMES = {"time_s", "samples_per_second", "busy_fraction", "pause_s"}
APART = ("begin", "final")
"""Events that the table leaves out."""
SHORT = ["--model", "mlp", "--stages", "2", "--max-steps", "16", "--log-every", "8"]
SHORT += ["--objective", "sgr"]


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def table_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def as_table(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What the table must hold of records."""
    columns = dict.fromkeys(name for r in records if r["event"] not in APART for name in r)

    def cell(value: Any) -> str:
        if value is None:
            return ""
        return value if isinstance(value, str) else json.dumps(value)

    return [
        {name: cell(r.get(name)) for name in columns} for r in records if r["event"] not in APART
    ]


def timeless(records: list[dict[str, Any]]) -> list[tuple[tuple[str, str], ...]]:
    """Records without times, in an order that does not depend on them."""
    rows = ({k: str(v) for k, v in record.items() if k not in TIMES} for record in records)
    return sorted(tuple(sorted(row.items())) for row in rows)


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    Keeps.made.clear()


def test_two_ranks_log_what_one_process_logs(tmp_path: Path) -> None:
    """Every figure of every stage but times, bytes and learning rates included; rank 1 opens nothing."""
    options = [*SHORT, "--log", f"csv, {MINE}:Keeps"]
    alone = train_alone(options, tmp_path / "alone")
    run_ranks(tmp_path / "log", ["train", *options, "--out", str(tmp_path / "ranks")], 2)
    (keeps,) = Keeps.made
    assert keeps.records == metrics_of(alone), "to the last digit, and in this order"
    assert (keeps.closed, keeps.run and keeps.run.folder) == (1, alone)
    assert table_of(alone) == as_table(metrics_of(alone))
    ours, theirs = table_of(alone), table_of(tmp_path / "ranks")
    assert timeless(ours) == timeless(theirs)
    trained = [row for row in ours if row["event"] == "train"]
    known = {name for row in trained if row["stage"] == "2" for name, value in row.items() if value}
    assert {"loss", "accuracy", "learning_rate", "residual", "cosine"} <= known
    assert {"peak_memory_bytes", "samples_per_second", "sent_bytes"} <= known
    sent = [int(row["sent_bytes"]) for row in trained if row["stage"] == "1"]
    (final,) = (r for r in metrics_of(alone) if r["event"] == "final" and r["stage"] == 1)
    assert 0 < sum(sent) <= final["sent_bytes"]  # an evaluation came after the last of them
    assert sent[0] == sent[1] > 0, "of the batches since the last record"


def test_a_run_that_goes_on_logs_every_step_once(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends 8 batches after a snapshot, with records of them; it goes on with other loggers."""
    out = tmp_path / "run"
    train_until(38, [*BASE, *EVERY, "--log", "csv"], out, monkeypatch)
    there = metrics_of(out)
    assert table_of(out) == as_table(there), "as far as it came"
    assert max(r["step"] for r in there) > 30
    train_alone([*BASE, *EVERY, "--log", f"csv,{MINE}:Keeps"], out)
    assert_same_bits(uninterrupted, out)
    (keeps,) = Keeps.made
    records = metrics_of(out)
    assert keeps.records == records
    assert keeps.run is not None
    assert 0 < keeps.run.earlier < len(there)
    assert table_of(out) == as_table(records)
    once = metrics_of(uninterrupted)
    assert timeless(without_snapshots(records)) == timeless(without_snapshots(once))


def without_snapshots(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in records if r["event"] in ("train", "evaluate")]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Raises", "ValueError: the service is gone and says so at length"),
        ("Leaves", "SystemExit: 5"),
    ],
)
def test_a_logger_that_fails_ends_alone(
    tmp_path: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run and the other logger go on, and one line says what failed where."""
    run = train_alone([*SHORT, "--log", f"{MINE}:{name},csv"], tmp_path / "run")
    output = capsys.readouterr().err
    (line,) = output.splitlines()
    assert said in line
    assert "mine.py, line" in line
    assert Keeps.made[0].closed == (1 if name == "Raises" else 0)
    assert table_of(run) == as_table(metrics_of(run))
    assert "never opened" not in output, "what follows from the first failure is not told"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tensorbord", "did you mean 'tensorboard'?"),
        ("csv,", "give names with commas between them"),
        ("csv,csv", "--log names csv twice"),
        (f"{MINE}:Half", "has no method record"),
        (f"{MINE}:Refused", "cannot be made: KeyError: 'TOKEN' ("),
        (f"{MINE}:None_", "there is no 'None_'"),
        ("mine.py", "name the function too"),
    ],
)
def test_what_is_no_logger_ends_in_one_line(
    tmp_path: Path, given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli.run(["train", *SHORT, "--log", given, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not out.exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_told_before_the_training(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    out = tmp_path / "run"
    assert cli.run(["train", *SHORT, "--log", f"csv,{name}", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"which is not installed: pip install {name}")
    assert not out.exists()


class Stuck:
    """Takes the first records at once, and no more until it is let go."""

    def __init__(self) -> None:
        self.first, self.go_on = threading.Event(), threading.Event()
        self.steps: list[int] = []

    def start(self, run: pl.loggers.LoggedRun) -> None:
        assert run.folder is None

    def record(self, record: dict[str, Any]) -> None:
        if record["event"] == "begin":
            return
        self.steps.append(record["step"] if "step" in record else record["steps"])
        self.first.set()
        assert self.go_on.wait(PATIENCE_S)

    def close(self) -> None:
        self.steps.append(-1)


def small() -> tuple[pl.Pipeline, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    data = torch.utils.data.TensorDataset(torch.randn(64, 8), torch.arange(64) % 2)
    return pl.Pipeline(net, stages=2, log_every=1), data


def test_a_logger_is_live_and_never_waited_for() -> None:
    """The training waits in a callback for a record, and then ends while the logger takes none."""
    stuck = Stuck()

    class Watch(pl.Callback):
        def on_batch_end(self, event: pl.BatchEnd) -> None:
            if event.step == 3:
                assert stuck.first.wait(PATIENCE_S), "no record came while the run went on"

        def on_epoch_end(self, event: pl.EpochEnd) -> None:
            if event.stage == 2 and event.epoch == 4:
                assert stuck.steps == [1], "it is still at its first"
                stuck.go_on.set()

    pipe, data = small()
    pipe.fit(data, batch_size=8, epochs=4, log=stuck, callbacks=[Watch()], progress=False)
    assert sorted(stuck.steps) == [-1, *sorted([*range(1, 33), 32] * 2)]


def test_loggers_from_python() -> None:
    pipe, data = small()
    keeps = Keeps()
    both: list[Any] = [keeps, lambda: keeps]
    for given in both:
        pipe.fit(data, batch_size=8, epochs=1, log=given, progress=False)
    assert keeps.closed == 2
    assert [r["step"] for r in keeps.records if r["event"] == "train" and r["stage"] == 1] == [
        *range(1, 9),
        *range(1, 9),
    ]
    with pytest.raises(pl.UserError, match=r"give fit\(out=...\) too"):
        pipe.fit(data, batch_size=8, epochs=1, log="csv", progress=False)
    with pytest.raises(pl.UserError, match="logger 'Half' has no method record"):
        pipe.fit(data, batch_size=8, epochs=1, log=Half(), progress=False)  # type: ignore[arg-type]
