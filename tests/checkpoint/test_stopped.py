"""A run without an option about saving, stopped by a real signal: it can be used, and gone on with."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pipelocal
from pipelocal import cli
from pipelocal.checkpoint.snapshot import SnapshotFolder
from pipelocal.pipeline.evaluation import Evaluation
from pipelocal.stage.stage import Stage
from pipelocal.transport.edge import IncomingBatch
from tests.interrupted import BASE
from tests.launching import launch
from tests.test_transparency import assert_same_bits

NAME = "mlp-digits-sgr"


def at_batch(step: int, what: int) -> Callable[[int], None]:
    """Rank 0 gets a signal behind a training batch."""

    def before(rank: int) -> None:
        update = Stage.update

        def signalled(stage: Stage, due: int | None = None) -> None:
            update(stage, due)
            if rank == 0 and stage.number == 1 and stage.steps == step:
                os.kill(os.getpid(), what)

        # For good: this is a process of its own.
        pytest.MonkeyPatch().setattr(Stage, "update", signalled)

    return before


def in_evaluation(number: int) -> Callable[[int], None]:
    """Rank 0 gets Ctrl-C in the middle of an evaluation, counted from 1."""

    def before(rank: int) -> None:
        meet, met = Evaluation.meet, [0]

        def signalled(
            evaluation: Evaluation, batch: IncomingBatch, which: int
        ) -> dict[str, torch.Tensor]:
            if rank == 0 and evaluation._stage.number == 1:
                met[0] += 1
                if met[0] == 6 * number - 3:  # an evaluation has six batches
                    os.kill(os.getpid(), signal.SIGINT)
            return meet(evaluation, batch, which)

        pytest.MonkeyPatch().setattr(Evaluation, "meet", signalled)

    return before


def figures(run: Path) -> list[tuple[Any, ...]]:
    """Of all records of training and evaluation, but for what depends on time."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return sorted(
        (r["event"], r["stage"], r["step"], r["epoch"], r["loss"], r["accuracy"])
        for r in records
        if r["event"] in ("train", "evaluate")
    )


@pytest.mark.parametrize(
    ("size", "before", "batch"),
    [
        (1, at_batch(30, signal.SIGINT), 30),
        (2, at_batch(46, signal.SIGTERM), 46),
        (1, in_evaluation(2), 46),
        (2, in_evaluation(3), 69),
    ],
    ids=["Ctrl-C", "at an epoch's end", "in an evaluation", "in the last evaluation"],
)
def test_without_an_option(
    tmp_path: Path,
    uninterrupted: Path,
    size: int,
    before: Callable[[int], None],
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["train", *BASE, "--plain"]
    ranks = launch(tmp_path / "log", command, size, before)
    assert 0 not in ranks.wait(), ranks.output()
    said = ranks.output(0)
    assert f"a snapshot after batch {batch} is in runs/{NAME}: the same command goes on" in said
    run = Path("runs", NAME)
    assert SnapshotFolder(run).steps() == [batch]

    assert cli.run(["evaluate", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    assert f"the weights after batch {batch}, before the end of the run" in captured.err
    of_snapshot = json.loads(captured.out)
    assert cli.run(["export", str(run), "--to", "model.pt"]) == 0
    loaded = pipelocal.load(str(run)).state_dict()
    exported = torch.load("model.pt", weights_only=True)
    assert all(torch.equal(value, exported[name]) for name, value in loaded.items())

    assert cli.run(command) == 0
    assert f"going on after batch {batch}" in capsys.readouterr().err
    assert [path.name for path in Path("runs").iterdir()] == [NAME]
    assert_same_bits(uninterrupted, run)
    assert figures(uninterrupted) == figures(run)
    if batch == 69:  # the snapshot was the end, but for its evaluation
        summary = json.loads((run / "summary.json").read_text())
        assert of_snapshot["eval_accuracy"] == summary["eval_accuracy"]
    assert SnapshotFolder(run).steps() == [], "the end is enough"


def test_none_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left then is named in one line."""
    monkeypatch.chdir(tmp_path)
    command = ["train", *BASE, "--plain", "--keep-snapshots", "0"]
    ranks = launch(tmp_path / "log", command, 1, at_batch(30, signal.SIGINT))
    assert ranks.wait() == [130], ranks.output()
    for use in (["evaluate"], ["export", "--to", "model.pt"]):
        assert cli.run([*use, f"runs/{NAME}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "did not end, and left no snapshot" in line
    assert cli.run(["evaluate", f"runs/{NAME}/snapshots/best"]) == 2
    assert "was evaluated" in capsys.readouterr().err


def test_a_run_that_still_goes_on_can_be_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process that trains has the folder's lock meanwhile."""
    out, codes = tmp_path / "run", []
    update = Stage.update

    def looking(stage: Stage, due: int | None = None) -> None:
        update(stage, due)
        if stage.steps == 40 and stage.number == 3:
            # The one of batch 30 may still be on its way to the disk.
            codes.append(cli.run(["evaluate", str(out)]))

    monkeypatch.setattr(Stage, "update", looking)
    options = ["--snapshot-every", "10", "--out", str(out)]
    assert cli.run(["train", *BASE, "--plain", *options]) == 0
    assert codes == [0]
    said = capsys.readouterr().err
    assert any(f"the weights after batch {step}," in said for step in (20, 30, 40)), said
