"""Runs with replicas that go on from a snapshot, and stages that stop training: all replicas at once."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import torch

from pipelocal import cli
from tests.launching import FOR_EVER, assert_named, launch, lose_patience_at
from tests.replicas.test_training import DROPOUT, MODELS, assert_close, train_over
from tests.test_transparency import assert_same_bits, train_alone

TWO = [*DROPOUT, "--stages", "2", "--replicas", "2", "--objective", "greedy"]


def go_on(ranks: int, options: list[str], whole: Path, step: int, out: Path) -> Path:
    snapshot = whole / "snapshots" / f"step-{step:08d}"
    return train_over(ranks, [*options, "--resume", str(snapshot)], out)


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        pytest.param(3, ["--stages", "1", "--replicas", "3"], marks=pytest.mark.slow),
        (2, ["--stages", "1", "--replicas", "2", "--compress", "sparse-sign"]),
        # The records come at other batches then, in another order if replicas did not agree on it.
        (4, ["--stages", "2", "--replicas", "2", "--accumulate", "2"]),
        # A stage that was frozen before the snapshot, which DDP would refuse.
        pytest.param(
            4,
            ["--stages", "2", "--replicas", "2", "--freeze-stage", "1:4"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["three", "drawn", "accumulated", "frozen"],
)
def test_the_same_bits(tmp_path: Path, ranks: int, options: list[str]) -> None:
    """Whoever met the batches before: the first behind a snapshot is the first replica's."""
    options = [*DROPOUT, *options, "--snapshot-every", "3", "--keep-snapshots", "99"]
    whole = train_over(ranks, [*options, "--log-every", "16"], tmp_path / "whole")
    steps = sorted(int(path.name[5:]) for path in (whole / "snapshots").iterdir())
    for step in (steps[1], next(step for step in steps if step > 23)):
        again = go_on(ranks, [*options, "--log-every", "3"], whole, step, tmp_path / f"from-{step}")
        for name in sorted(path.name for path in (whole / "stages").glob("stage-*.pt")):
            ours, theirs = (
                torch.load(run / "stages" / name, weights_only=True) for run in (whole, again)
            )
            for part in ("body", "head"):
                for key, value in ours[part].items():
                    assert torch.equal(value, theirs[part][key]), (step, name, key)


def test_a_snapshot_between_two_updates_is_refused(tmp_path: Path) -> None:
    """Its gradients are those of one process, and not of each replica."""
    alone = [*DROPOUT, "--stages", "2", "--objective", "greedy", "--snapshot-every", "5"]
    alone += ["--keep-snapshots", "99"]
    run = train_alone([*alone, "--accumulate", "2", "--max-steps", "15"], tmp_path / "alone")
    resumed = [
        "train",
        *TWO,
        "--accumulate",
        "1",
        "--resume",
        str(run / "snapshots" / "step-00000005"),
    ]
    ranks = launch(tmp_path / "log", [*resumed, "--out", str(tmp_path / "ranks")], 4)
    assert all(ranks.wait())
    assert "is of batch 5, between two updates of 2 batches" in ranks.output(0)
    # Behind an update of the new run, but not of the old one.
    three = [*alone, "--accumulate", "3", "--max-steps", "16", "--snapshot-every", "4"]
    run = train_alone(three, tmp_path / "three")
    resumed = [
        "train",
        *TWO,
        "--accumulate",
        "1",
        "--resume",
        str(run / "snapshots" / "step-00000008"),
    ]
    ranks = launch(tmp_path / "log", [*resumed, "--out", str(tmp_path / "ranks")], 4)
    assert all(ranks.wait())
    assert "has gradients of 2 batch(es) that are no update yet" in ranks.output()


@pytest.mark.parametrize("way", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("after", ["22", "23", "24"])
def test_replicas_freeze_at_the_same_batch(tmp_path: Path, way: str, after: str) -> None:
    """At the end of an epoch of 23 batches too, whose last one is one replica's alone."""
    options = [*TWO, "--freeze-stage", f"1:{after}", "--snapshot-every", "30", "--epochs", "2"]
    alone = train_alone([*options, "--max-steps", "46"], tmp_path / "alone")
    over = train_over(4, [*options, "--max-steps", "46", "--replicate", way], tmp_path / "ranks")
    assert_close(alone, over, 1e-5)  # frozen_at with the rest
    records = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (alone, over)
    ]
    ours, theirs = ([r["step"] for r in run if r["event"] == "freeze"] for run in records)
    assert ours == theirs


def test_what_no_replica_moves_keeps_its_bits(tmp_path: Path) -> None:
    """And a parameter that has no gradient does not decay; counts of batches add up."""
    options = ["--model", f"{MODELS}:awkward", "--stages", "1", "--replicas", "3", "--lr", "0.05"]
    options += ["--max-steps", "30", "--weight-decay", "0.1", "--objective", "greedy"]
    for way in ("ddp", "fsdp"):
        run = train_over(3, [*options, "--replicate", way], tmp_path / way)
        body = torch.load(run / "stages" / "stage-1.pt", weights_only=True)["body"]
        assert torch.equal(body["u2.unused"], torch.ones(3))
        assert torch.equal(body["u2.mask"], torch.full((2,), torch.finfo(torch.float32).min))
        fine = torch.tensor([1 / 3, -0.0], dtype=torch.float64)
        assert torch.equal(body["u2.fine"], fine)
        assert torch.equal(torch.signbit(body["u2.fine"]), torch.signbit(fine))
        assert int(body["u2.norm.num_batches_tracked"]) == 30


def test_auto_does_not_go_round_what_is_refused(tmp_path: Path) -> None:
    """The second stage alone sleeps, so that it gets the fourth rank on a busy host, too."""
    options = ["train", "--model", f"{MODELS}:one_sleeps", "--stages", "3", "--replicas", "auto"]
    options += [
        "--head",
        "linear",
        "--objective",
        "greedy",
        "--step-early",
        "--out",
        str(tmp_path / "run"),
    ]
    ranks = launch(tmp_path / "log", options, 4)
    codes = ranks.wait()
    assert all(codes), codes
    assert "--step-early is for updates after every batch" in ranks.output()
    assert not (tmp_path / "run").exists()


def test_rounds_are_part_of_what_a_run_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With synchronised BatchNorm an epoch leaves out what is no whole round."""
    options = ["--model", "mlp", "--stages", "2", "--objective", "greedy", "--max-steps", "30"]
    run = tmp_path / "run"
    train_alone([*options, "--replicas", "2", "--sync-batchnorm"], run)
    (run / "summary.json").unlink()
    again = ["train", *options, "--sync-batchnorm", "--accumulate", "2", "--out", str(run)]
    assert cli.run(again) == 2
    assert "--replicas (2 there, 1 here)" in capsys.readouterr().err
    nothing = [*options[:-1], "1", "--replicas", "2", "--sync-batchnorm"]
    assert cli.run(["train", *nothing, "--out", str(tmp_path / "nothing")]) == 2
    assert "--max-steps 1 is less than the 2 batches" in capsys.readouterr().err


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_replica_is_named_while_norms_wait_for_it(
    tmp_path: Path, what: signal.Signals
) -> None:
    options = ["train", "--model", "resnet8", "--stages", "1", "--replicas", "2"]
    options += ["--timeout", str(FOR_EVER)]
    options += ["--sync-batchnorm", "--epochs", "900", "--log-every", "2", "--lr", "0.001"]
    options += ["--out", str(tmp_path / "run"), "--plain"]
    stopped = tmp_path / "stopped"
    ranks = launch(tmp_path / "log", options, 2, lambda _: lose_patience_at(stopped))
    ranks.wait_for_output(0, "1: loss")
    ranks.kill(1, what)
    if what == signal.SIGSTOP:
        stopped.touch()
    ranks.wait([0])
    ranks.kill(1)
    said = ranks.output(0)
    if what == signal.SIGSTOP:
        assert_named(1, said)
    else:
        assert re.search(r"lost the connection to stage 1 \(rank 1\): its process is gone", said)


def test_other_counts_go_on_with_a_run(tmp_path: Path) -> None:
    """Three replicas and two, then two and three: updates of six batches either way."""
    options = [*DROPOUT, "--stages", "2", "--objective", "greedy", "--snapshot-every", "6"]
    options += ["--keep-snapshots", "99"]
    whole = train_over(5, [*options, "--replicas", "3,2"], tmp_path / "whole")
    other = go_on(5, [*options, "--replicas", "2,3"], whole, 35, tmp_path / "other")
    assert_close(whole, other, 1e-4)
    one = tmp_path / "one"
    snapshot = ["--resume", str(whole / "snapshots" / "step-00000035")]
    assert_close(whole, train_alone([*options, "--replicas", "3,2", *snapshot], one), 1e-4)
    assert_same_bits(whole, train_over(5, [*options, "--replicas", "3,2"], tmp_path / "again"))
