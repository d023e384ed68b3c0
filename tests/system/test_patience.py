"""Patience: time counts only while the process runs."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from pipelocal.system.patience import MOST_S, Patience
from tests.launching import launch, until


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def looks_until_over(patience: Patience, clock: FakeClock, *, every: float) -> int:
    looks = 0
    while not patience.over():
        clock.now += every
        looks += 1
    return looks


@pytest.mark.parametrize("every", [0.1, 0.5, 1.0])
def test_time_counts_while_it_is_looked_at(every: float) -> None:
    clock = FakeClock()
    patience = Patience(300, clock=clock)
    assert looks_until_over(patience, clock, every=every) == pytest.approx(300 / every, abs=1)


@pytest.mark.parametrize("suspended", [20.0, 3600.0, 1e6])
def test_a_suspension_counts_as_a_moment(suspended: float) -> None:
    clock = FakeClock()
    patience = Patience(6, clock=clock)
    for _ in range(10):
        clock.now += 0.1
        assert not patience.over()
    clock.now += suspended
    assert patience.left() >= 6 - 1.1 - MOST_S
    assert looks_until_over(patience, clock, every=0.1) >= 39


def test_even_a_short_patience_outlives_a_suspension() -> None:
    """Graces for a cause are of a second or two."""
    clock = FakeClock()
    patience = Patience(1.5, clock=clock)
    clock.now += 3600
    assert patience.left() > 1.0


def test_a_job_that_is_suspended_again_and_again() -> None:
    """As a scheduler does that lets jobs take turns."""
    clock = FakeClock()
    patience = Patience(300, clock=clock)
    for _ in range(20):
        clock.now += 0.1
        assert not patience.over()
        clock.now += 30
        assert not patience.over()


def test_without_any_patience_it_is_over_at_once() -> None:
    assert Patience(0, clock=FakeClock()).over()


def test_unlimited_patience() -> None:
    clock = FakeClock()
    patience = Patience(float("inf"), clock=clock)
    clock.now += 1e9
    assert not patience.over()


@pytest.mark.slow
def test_a_job_that_was_suspended_longer_than_its_timeout_goes_on(tmp_path: Path) -> None:
    """Every wait found its time over on waking, and the run ended: 'it hangs or is too slow'."""
    arguments = ["train", "--model", "resnet8", "--stages", "2", "--epochs", "1000", "--plain"]
    arguments += ["--timeout", "15", "--out", str(tmp_path / "run")]
    ranks = launch(tmp_path / "log", arguments, 2)
    metrics = tmp_path / "run" / "metrics.jsonl"

    def wait_for_more() -> None:
        before = len(metrics.read_text()) if metrics.exists() else 0

        def grown() -> bool:
            assert all(process.is_alive() for process in ranks.processes), ranks.output()
            return metrics.exists() and len(metrics.read_text()) >= before + 4000

        until(grown, ranks.output)

    wait_for_more()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for rank in range(2):
            ranks.kill(rank, number)
        time.sleep(20 if number == signal.SIGSTOP else 0)
    wait_for_more()
    for rank in range(2):
        ranks.kill(rank, signal.SIGTERM)
    assert all(ranks.wait())
