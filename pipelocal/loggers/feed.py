"""Feeds loggers, each on a thread of its own, so that none can hold up the run or another logger."""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipelocal.errors import UserError
from pipelocal.loggers.logger import LoggedRun, Logger
from pipelocal.references import told
from pipelocal.system.patience import Patience
from pipelocal.system.streams import tell

MOST_WAITING = 200_000
"""Records that may wait for a slow logger, about 100 MB, before it is given up."""

NOTICE_S = 3.0
"""Seconds of waiting for a logger at the end of a run before the user is told."""

LOOK_S = 0.2


class Feed:
    """One logger and its thread.

    Args:
        name: the logger's name, for the user.
        logger: takes the records.
    """

    def __init__(self, name: str, logger: Logger) -> None:
        self.name = name
        self._given_up = False
        self._logger = logger
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, run: LoggedRun, earlier: Sequence[str]) -> None:
        """Start the thread.

        Args:
            run: what the logger is told.
            earlier: the records that come first, as lines of JSON.
        """
        self._thread = threading.Thread(
            target=self._work, args=(run, earlier), name=f"logger {self.name}", daemon=True
        )
        self._thread.start()

    def put(self, lines: Sequence[str]) -> None:
        """Hand over records, as lines of JSON; never waits."""
        if self._given_up:
            return
        for line in lines:
            self._waiting.put(line)
        if self._waiting.qsize() > MOST_WAITING:
            self._give_up(f"{MOST_WAITING} records behind")
            self._waiting.put(None)

    def end(self) -> None:
        """Say that no more records come; does not wait."""
        self._waiting.put(None)

    def ends(self, *patiences: Patience) -> bool:
        """Wait for the thread's end until a patience is over; return whether it has ended."""
        thread = self._thread
        while thread is not None and thread.is_alive():
            thread.join(LOOK_S)
            if any(patience.over() for patience in patiences):
                break
        return thread is None or not thread.is_alive()

    def _work(self, run: LoggedRun, earlier: Sequence[str]) -> None:
        with self._given_up_if_it_fails():
            self._logger.start(run)
            new = iter(self._waiting.get, None)
            for line in itertools.chain(earlier, new):
                if self._given_up:
                    break
                self._logger.record(json.loads(line))
        with self._given_up_if_it_fails():
            self._logger.close()

    @contextmanager
    def _given_up_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # also SystemExit, which would end the thread without a word
            if not self._given_up:  # what follows from the first failure is not told
                self._give_up(str(error) if isinstance(error, UserError) else told(error))

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        said = " ".join(reason.split())
        tell(f"the logger {self.name} is given up ({said}); the training goes on without it")


class Feeds:
    """All loggers of a run, on rank 0.

    Args:
        loggers: the loggers and their names.
    """

    def __init__(self, loggers: Sequence[tuple[str, Logger]] = ()) -> None:
        self._feeds = [Feed(name, logger) for name, logger in loggers]
        self._ended = False

    def start(self, run: LoggedRun, metrics: Path | None) -> None:
        """Start the threads.

        Args:
            run: what loggers are told, but for the number of earlier records.
            metrics: the file with these; None without one.
        """
        if not self._feeds:
            return
        earlier: list[str] = []
        if metrics is not None and metrics.exists():
            earlier = metrics.read_text(encoding="utf-8").splitlines()
        run = replace(run, earlier=len(earlier))
        for feed in self._feeds:
            feed.start(run, earlier)

    def put(self, lines: Sequence[str]) -> None:
        """Hand records to every logger, as lines of JSON; never waits."""
        for feed in self._feeds:
            feed.put(lines)

    def end(self) -> None:
        """Say that no more records come; does not wait. A second call does nothing."""
        if not self._ended:
            for feed in self._feeds:
                feed.end()
        self._ended = True

    def wait(self, seconds: float) -> None:
        """Wait until the loggers have taken what they were handed, and tell which have not.

        Args:
            seconds: for all of them together; a logger that needs longer is left behind.
        """
        patience = Patience(seconds)
        if not self._ended:
            return
        for feed in self._feeds:
            if feed.ends(Patience(NOTICE_S), patience):
                continue
            if not patience.over():
                tell(f"waiting up to {patience.left():.0f} s for the logger {feed.name}")
            if not feed.ends(patience):
                tell(f"the logger {feed.name} is left behind: it has not taken all records")
