"""Loggers that do not keep up are given up or left behind, and told of."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pipelocal.loggers import LoggedRun, feed
from pipelocal.loggers.feed import Feeds
from tests.launching import PATIENCE_S, until

RUN = LoggedRun(title="a run", folder=None, options={})


class Waits:
    """Takes no record before it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.taken: list[Any] = []
        self.closed = threading.Event()

    def start(self, run: LoggedRun) -> None: ...

    def record(self, record: dict[str, Any]) -> None:
        assert self.may.wait(PATIENCE_S)
        self.taken.append(record["step"])

    def close(self) -> None:
        self.closed.set()


def test_a_logger_too_far_behind_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(feed, "MOST_WAITING", 10)
    slow, other = Waits(), Waits()
    other.may.set()
    feeds = Feeds([("slow", slow), ("other", other)])
    feeds.start(RUN, None)
    for step in range(30):
        feeds.put([f'{{"step": {step}}}'])
        until(lambda step=step: len(other.taken) == step + 1)  # type: ignore[misc]
    said = capsys.readouterr().err
    assert said.count("the logger slow is given up (10 records behind)") == 1
    slow.may.set()
    feeds.end()
    assert slow.closed.wait(PATIENCE_S)
    assert slow.taken == [0], "the one that it had begun"
    feeds.wait(PATIENCE_S)
    assert other.taken == [*range(30)]


def test_a_logger_that_hangs_is_left_behind(capsys: pytest.CaptureFixture[str]) -> None:
    hangs = Waits()
    feeds = Feeds([("hangs", hangs)])
    feeds.start(RUN, None)
    feeds.put(['{"step": 1}'])
    feeds.end()
    feeds.wait(0.01)
    assert "the logger hangs is left behind" in capsys.readouterr().err
    hangs.may.set()


def test_a_run_that_never_began_waits_for_nothing() -> None:
    feeds = Feeds([("never", Waits())])
    feeds.wait(PATIENCE_S)
