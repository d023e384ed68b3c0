"""No hang: uneven tails, early stops, failures and lost ranks, with messages of over 32 MiB.

Messages that size do not fit into any socket's buffer: a send really waits for its receive.
"""

import json
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelocal.pipeline.source import Source
from pipelocal.transport.inprocess import HandedBatch
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

MODELS = Path(__file__).parent / "models_for_tests.py"
WIDE = ["train", "--model", f"{MODELS}:wide", "--objective", "sgr", "--lr", "0.01", "--plain"]
WIDE += ["--batch-size", "720"]
LOCO = ["--objective", "loco"]
PGL = ["--objective", "pgl", "--guide-every", "2"]
"""With edges back as well."""


def summary_of(out: Path) -> dict[str, object]:
    summary: dict[str, object] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.parametrize(
    ("window", "back"),
    [(1, []), (2, []), (1, LOCO), pytest.param(2, PGL, marks=pytest.mark.slow)],
)
def test_uneven_last_batches_of_wide_messages(tmp_path: Path, window: int, back: list[str]) -> None:
    """1442 samples in batches of 720 leave two for the last; the test set is one batch of 355."""
    out = tmp_path / "run"
    arguments = [*WIDE, *back, "--epochs", "1", "--window", str(window), "--out", str(out)]
    run_ranks(tmp_path / "log", arguments, 4)
    assert summary_of(out)["steps"] == 3


@pytest.mark.parametrize(
    ("steps", "back"), [(1, []), (2, PGL), (4, []), pytest.param(1, LOCO, marks=pytest.mark.slow)]
)
def test_early_stop(tmp_path: Path, steps: int, back: list[str]) -> None:
    """The stream may end anywhere: at once, within an epoch, after the first of the next one."""
    out = tmp_path / "run"
    run_ranks(tmp_path / "log", [*WIDE, *back, "--max-steps", str(steps), "--out", str(out)], 4)
    assert summary_of(out)["steps"] == steps


@pytest.mark.parametrize("kinds", ["#TTET#EE#", "#", "", "E#E#T", "TTTT", "TE#TETETTE#"], ids=repr)
def test_train_and_evaluate_in_any_order(tmp_path: Path, kinds: str) -> None:
    """T train, E evaluate, # evaluation over, in orders that no plan would make."""

    def shuffle(rank: int) -> None:
        wished = iter(kinds)
        whole = Source._training

        def events(self: Source, plan: object, start: int) -> object:
            by_kind: dict[str, list[HandedBatch]] = {"T": [], "E": [], "#": [], "|": []}
            for event in whole(self, plan, start):  # type: ignore[arg-type]
                by_kind[{1: "T", 5: "T", 2: "E", 3: "#", 7: "|"}[event.header.kind]].append(event)
            for number, kind in enumerate(wished):
                event = by_kind[kind].pop(0) if kind != "#" else by_kind["#"][0]
                header = event.header
                again = HandedBatch(
                    type(header)(
                        kind=header.kind,
                        number=number,
                        rows=header.rows,
                        epoch=0,
                        step=kinds[:number].count("T"),
                    )
                )
                again.tensors = event.tensors
                yield again
            self._number = len(kinds)

        Source._training = events  # type: ignore[method-assign, assignment]

    ranks = launch(
        tmp_path / "log", [*WIDE, "--epochs", "6", "--out", str(tmp_path / "run")], 3, shuffle
    )
    # A stream that ends before its plan does was told to stop.
    assert ranks.wait() == [143, 143, 143], ranks.output()
    assert "error" not in ranks.output()


def launch_misbehaving(
    tmp_path: Path, *, culprit: int, size: int = 4, back: Sequence[str] = ()
) -> Ranks:
    """Start a run in which every unit of one rank does what ``tmp_path/flag`` says, once it exists.

    The others lose patience soon after it has begun to.
    """
    arguments = [*WIDE, "--model", f"{MODELS}:wide_misbehaving", "--epochs", "1000"]
    arguments += ["--log-every", "2", "--timeout", str(FOR_EVER), "--out", str(tmp_path / "run")]
    arguments += back

    def watch_flag(rank: int) -> None:
        lose_patience_at(tmp_path / "flag.begun")
        if rank == culprit:
            os.environ[EDGE_CASE_FLAG] = str(tmp_path / "flag")

    ranks = launch(tmp_path / "log", arguments, size, watch_flag)
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count('"stage": 4') >= 2, ranks.output)
    return ranks


def misbehave(tmp_path: Path, what: str) -> None:
    (tmp_path / "flag.new").write_text(what)
    (tmp_path / "flag.new").rename(tmp_path / "flag")


@pytest.mark.parametrize("culprit", [0, 1, pytest.param(3, marks=pytest.mark.slow)])
def test_an_error_on_one_rank_ends_all_and_all_say_why(tmp_path: Path, culprit: int) -> None:
    ranks = launch_misbehaving(tmp_path, culprit=culprit)
    misbehave(tmp_path, "raise")
    codes = ranks.wait()
    assert all(code == 1 for code in codes), codes
    for rank in range(4):
        said = ranks.output(rank)
        assert f"rank {culprit}, stage {culprit + 1}, batch" in said or rank == culprit, said
        assert "ZeroDivisionError: the unit was told to fail" in said
        assert "Traceback" not in said
    assert (tmp_path / "run" / f"error-rank-{culprit}.txt").read_text().count("Traceback") >= 1


@pytest.mark.parametrize("culprit", [0, 2])
def test_nan_names_the_stage_where_it_began(tmp_path: Path, culprit: int) -> None:
    """The stages behind it see NaN too, almost at once, and must not take the blame."""
    ranks = launch_misbehaving(tmp_path, culprit=culprit)
    misbehave(tmp_path, "nan")
    codes = ranks.wait()
    assert all(code == 1 for code in codes), codes
    for rank in range(4):
        said = ranks.output(rank)
        assert f"stage {culprit + 1}, " in said, said  # it may begin in an evaluation
        assert "the loss is NaN or infinite" in said


@pytest.mark.parametrize(
    ("victim", "back"), [(0, []), (1, LOCO), (3, []), pytest.param(2, PGL, marks=pytest.mark.slow)]
)
def test_a_killed_rank_ends_all_before_their_patience_does(
    tmp_path: Path, victim: int, back: list[str]
) -> None:
    ranks = launch_misbehaving(tmp_path, culprit=victim, back=back)
    ranks.kill(victim, signal.SIGKILL)
    codes = ranks.wait()
    assert codes[victim] == -signal.SIGKILL
    assert all(code == 1 for rank, code in enumerate(codes) if rank != victim), codes
    for rank in {0, 1, 2, 3} - {victim}:
        assert f"lost the connection to stage {victim + 1} (rank {victim})" in ranks.output(rank)


@pytest.mark.slow
def test_a_rank_that_leaves_without_a_word_is_like_a_killed_one(tmp_path: Path) -> None:
    ranks = launch_misbehaving(tmp_path, culprit=2)
    misbehave(tmp_path, "exit")
    assert sorted(ranks.wait()) == [1, 1, 1, 7]


@pytest.mark.parametrize(
    ("culprit", "back"),
    [
        (1, []),
        *(pytest.param(culprit, [], marks=pytest.mark.slow) for culprit in (0, 3)),
        pytest.param(2, LOCO, marks=pytest.mark.slow),
    ],
)
def test_a_hung_rank_ends_all_after_the_timeout_and_is_named(
    tmp_path: Path, culprit: int, back: list[str]
) -> None:
    """A stopped process keeps its connections: only patience can run out. Neighbours' neighbours
    lose theirs at about the same time, but all name the one that does not answer."""
    ranks = launch_misbehaving(tmp_path, culprit=culprit, back=back)
    misbehave(tmp_path, "stop")
    others = [rank for rank in range(4) if rank != culprit]
    assert ranks.wait(others) == [1, 1, 1], ranks.output()
    ranks.kill(culprit)
    for rank in others:
        said = ranks.output(rank)
        text = (
            r"stage \d, batch \d+: (nothing from|no room towards) stage \d \(rank \d\) for 9998.5 s"
        )
        assert re.search(text, said), said
        assert_named(culprit, said)


@pytest.mark.slow
def test_a_rank_that_is_busy_for_ever_is_named(tmp_path: Path) -> None:
    """Its process answers: it waits for nobody."""
    ranks = launch_misbehaving(tmp_path, culprit=2)
    misbehave(tmp_path, "sleep")
    ranks.wait((0, 1, 3))
    ranks.kill(2)
    for rank in (0, 1, 3):
        said = ranks.output(rank)
        busy = re.search(
            r"; all ranks answer, and ranks? ([\d, ]+) do(es)? not wait for another", said
        )
        assert busy is not None, said
        assert "2" in busy[1].split(", "), said


def test_sigterm_to_every_rank_ends_them_at_once(tmp_path: Path) -> None:
    """What torchrun does when it gives up."""
    ranks = launch_misbehaving(tmp_path, culprit=0)
    for rank in range(4):
        ranks.kill(rank, signal.SIGTERM)
    codes = ranks.wait()
    assert all(code in (1, 143) for code in codes), codes


def test_a_failure_of_rank_0_before_the_start_ends_the_others(tmp_path: Path) -> None:
    """Only rank 0 reads data: the others hear of it."""
    arguments = ["train", "--data", "fashion-mnist", "--data-root", str(tmp_path / "none")]
    ranks = launch(tmp_path / "log", [*arguments, "--out", str(tmp_path / "run")], 3)
    codes = ranks.wait()
    assert codes == [2, 1, 1], ranks.output()
    for rank in range(3):
        assert str(tmp_path / "none") in ranks.output(rank)


def test_ranks_that_disagree_are_told_so(tmp_path: Path) -> None:
    """Options are compared before anything else; the contract of an edge would differ, too."""
    common = ["train", "--stages", "2", "--out", str(tmp_path / "run"), "--batch-size"]
    ranks = launch(tmp_path / "log", [[*common, "32"], [*common, "64"]], 2)
    codes = ranks.wait()
    assert all(codes), codes
    for rank in (0, 1):
        assert "--batch-size (32 on rank 0, 64 on rank 1)" in ranks.output(rank)


def test_sigterm_ends_a_rank_that_still_waits_for_the_others(tmp_path: Path) -> None:
    """Ranks meet deep inside the process group's start; a rank that never comes must not hold them."""

    def stay_away(rank: int) -> None:
        if rank == 1:
            time.sleep(FOR_EVER)

    ranks = launch(tmp_path / "log", ["train", "--out", str(tmp_path / "run")], 2, stay_away)
    until(lambda: list((tmp_path / "log").glob("meet-*")), ranks.output)  # rank 0 has come to it
    ranks.kill(0, signal.SIGTERM)
    assert ranks.wait([0]) == [143], ranks.output()
    assert "terminated by a signal" in ranks.output(0)
    ranks.kill(1)


@pytest.mark.parametrize("seconds_later", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_sigterm_on_account_of_a_killed_rank_tells_of_that_rank(
    tmp_path: Path, seconds_later: float
) -> None:
    """As under torchrun: one rank dies, the others get SIGTERM, before or after they noticed."""
    ranks = launch_misbehaving(tmp_path, culprit=1)
    ranks.kill(1, signal.SIGKILL)
    time.sleep(seconds_later)
    for rank in (0, 2, 3):
        ranks.kill(rank, signal.SIGTERM)
    ranks.wait()
    for rank in (0, 2, 3):
        assert "lost the connection to stage 2 (rank 1)" in ranks.output(rank), ranks.output()
