"""Nothing of a run with replicas is lost, and none of it hangs."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.launching import (
    FOR_EVER,
    Ranks,
    assert_named,
    launch,
    lose_patience_at,
    run_ranks,
    until,
)
from tests.models_for_tests import EDGE_CASE_FLAG
from tests.replicas.test_training import DROPOUT, MODELS, train_over
from tests.test_no_hang import WIDE
from tests.test_transparency import assert_same_bits, train_alone

UNEVEN = ["--stages", "3", "--replicas", "1,2,1"]


@pytest.mark.parametrize("replicas", ["1,2,1", "3,2"])
def test_wide_messages_and_the_smallest_window(tmp_path: Path, replicas: str) -> None:
    """33.75 MiB a message; three batches an epoch, which the replicas do not share out evenly."""
    counts = [int(word) for word in replicas.split(",")]
    options = [*WIDE, "--stages", str(len(counts)), "--replicas", replicas, "--window", "1"]
    options += ["--epochs", "2", "--evaluate-every", "2", "--out", str(tmp_path / "run")]
    run_ranks(tmp_path / "log", options, sum(counts))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 6


def under_way(tmp_path: Path, *, culprit: int) -> Ranks:
    """A run of which one rank does what ``tmp_path/flag`` says, once it exists."""
    arguments = [*WIDE, "--model", f"{MODELS}:wide_misbehaving", "--epochs", "1000", *UNEVEN]
    arguments += ["--log-every", "2", "--timeout", str(FOR_EVER), "--out", str(tmp_path / "run")]

    def watch_flag(rank: int) -> None:
        lose_patience_at(tmp_path / "stopped")
        if rank == culprit:
            os.environ[EDGE_CASE_FLAG] = str(tmp_path / "flag")

    ranks = launch(tmp_path / "log", arguments, 4, watch_flag)
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count('"stage": 3') >= 2, ranks.output)
    return ranks


def test_an_error_in_a_replica_ends_all_and_all_say_why(tmp_path: Path) -> None:
    ranks = under_way(tmp_path, culprit=2)
    (tmp_path / "flag.new").write_text("raise")
    (tmp_path / "flag.new").rename(tmp_path / "flag")
    assert ranks.wait() == [1] * 4
    for rank in (0, 1, 3):
        said = ranks.output(rank)
        assert re.search(r"rank 2, stage 2, batch \d+: ZeroDivisionError: the unit was told", said)


@pytest.mark.parametrize("lost", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_replica_ends_all_before_their_patience_does(tmp_path: Path, lost: int) -> None:
    ranks = under_way(tmp_path, culprit=3)
    ranks.kill(lost)
    codes = ranks.wait()
    assert codes[lost] == -signal.SIGKILL
    assert all(code == 1 for rank, code in enumerate(codes) if rank != lost), codes
    assert f"(rank {lost}): its process is gone" in ranks.output() or "lost the connection" in (
        ranks.output()
    )


@pytest.mark.slow
def test_a_replica_that_hangs_is_named(tmp_path: Path) -> None:
    ranks = under_way(tmp_path, culprit=3)
    ranks.kill(2, signal.SIGSTOP)
    (tmp_path / "stopped").touch()
    ranks.wait((0, 1, 3))
    ranks.kill(2)
    assert_named(2, ranks.output(0))


EVERY = ["--snapshot-every", "6", "--keep-snapshots", "99"]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_run_goes_on_with_the_same_bits(tmp_path: Path, way: str) -> None:
    """From a snapshot within an epoch, of replicas of a stage in the middle and of the first one."""
    options = [*DROPOUT, "--stages", "2", "--replicas", "2", "--replicate", way, "--log-every", "5"]
    options += ["--optimizer", "adamw", "--lr", "0.005", *EVERY]
    whole = train_over(4, options, tmp_path / "whole")
    steps = sorted(path.name for path in (whole / "snapshots").iterdir())
    assert steps[-2:] == ["step-00000031", "step-00000037"], "at updates alone"
    assert_same_bits(whole, train_over(4, options, tmp_path / "plain"))
    for name in steps[-2:]:
        out = tmp_path / name
        again = [*options, "--resume", str(whole / "snapshots" / name)]
        assert_same_bits(whole, train_over(4, again, out))


@pytest.mark.slow
def test_a_killed_run_goes_on_in_one_process_too(tmp_path: Path) -> None:
    """Replicas are no part of what a run is: updates of so many batches are."""
    options = [*DROPOUT, *UNEVEN, "--objective", "greedy", *EVERY, "--max-steps", "300"]
    options += ["--epochs", "30"]
    out = tmp_path / "run"
    ranks = launch(tmp_path / "log", ["train", *options, "--out", str(out), "--plain"], 4)
    until(lambda: list((out / "snapshots").glob("*/manifest.json")), ranks.output)
    ranks.kill(2)
    ranks.wait()
    assert not (out / "summary.json").exists(), "it was killed too late"
    alone = train_alone(options, tmp_path / "alone")
    train_alone(options, out)  # goes on
    assert_same_bits(alone, out)


def test_sigterm_stops_replicas_of_the_first_stage_at_the_same_batch(tmp_path: Path) -> None:
    options = ["--model", f"{MODELS}:jitter", "--stages", "2", "--replicas", "2,1", "--lr", "0.01"]
    options += ["--epochs", "400", "--snapshot-every", "100000", "--plain"]
    out = tmp_path / "run"
    ranks = launch(tmp_path / "log", ["train", *options, "--log-every", "2", "--out", str(out)], 3)
    ranks.wait_for_output(0, "1: loss")
    ranks.kill(1, signal.SIGTERM)  # a replica of the first stage, and not rank 0
    assert ranks.wait() == [143] * 3, ranks.output()
    (snapshot,) = (out / "snapshots").iterdir()
    assert (snapshot / "manifest.json").exists()
