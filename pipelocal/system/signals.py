"""Handles signals: requests to end, after a snapshot if the run takes any; SIGUSR1 requests a snapshot.

SIGTERM, SIGHUP and Ctrl-C would end a run where it stands. With snapshots the source puts a marker on the
stream and ends it there, so that nothing is lost. That takes the time of a batch through all stages
and of writing a file; if it takes longer than :data:`PATIENCE_S`, the run ends anyway.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from pipelocal.errors import Terminated
from pipelocal.system.patience import Patience

PATIENCE_S = 20.0
"""Seconds for the snapshot: less than the 30 s after which torchrun kills its processes."""
REPEATED_S = 3.0
"""Seconds after which another Ctrl-C ends the run at once. (torchrun makes the first one arrive twice.)"""
POLL_S = 0.2

REASONS = {
    signal.SIGTERM: "terminated by a signal",
    signal.SIGHUP: "the terminal was closed (SIGHUP)",
    signal.SIGINT: "interrupted by the user",
}


class Wishes:
    """Requests that signals have made to this process."""

    def __init__(self) -> None:
        self.stop = False
        """Whether to end after a snapshot."""
        self.number: int = signal.SIGTERM
        """The signal that asked for the end, if :attr:`stop`."""
        self.reason = ""
        """The reason for the end, if :attr:`stop`."""
        self._snapshot = False
        self._since = 0.0

    def take_snapshot(self) -> bool:
        """Return whether a snapshot was requested since the last call."""
        wanted, self._snapshot = self._snapshot, False
        return wanted

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Handle signals within this block; does nothing outside the main thread.

        After a request to end, another one must not come between the snapshot and the line that tells of it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGUSR1: self._on_snapshot,
            signal.SIGALRM: self._on_alarm,
        }
        if ends_with_terminal():
            handlers[signal.SIGHUP] = self._on_stop
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        over = threading.Event()
        threading.Thread(target=self._watch, args=[over], name="stopping", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            for number, handler in before.items():
                ends = self.stop and handler is _on_end
                signal.signal(number, _ignored if ends else handler)

    def _watch(self, over: threading.Event) -> None:
        """Interrupt the main thread when the snapshot takes too long."""
        while not over.wait(POLL_S):
            if self.stop:
                patience = Patience(PATIENCE_S)
                while not over.wait(POLL_S):
                    if patience.over():
                        os.kill(os.getpid(), signal.SIGALRM)
                        return

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        if not self.stop:
            self.stop, self._since = True, time.monotonic()
            self.number, self.reason = number, REASONS[signal.Signals(number)]
        elif number == signal.SIGINT and time.monotonic() - self._since > REPEATED_S:
            raise KeyboardInterrupt

    def _on_snapshot(self, _number: int, _frame: FrameType | None) -> None:
        self._snapshot = True

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        raise Terminated(
            f"{self.reason}, and no snapshot was complete within {PATIENCE_S:g} s", self.number
        )


def end_on_signals() -> None:
    """Make SIGTERM, and SIGHUP unless ignored as by nohup, raise :class:`Terminated`, once.

    A closed terminal tells all its processes, and torchrun passes it on as well: the second signal must not
    interrupt what the first one began. Ctrl-C still does.
    """
    signal.signal(signal.SIGTERM, _on_end)
    if ends_with_terminal():
        signal.signal(signal.SIGHUP, _on_end)


def end_on_signals_again() -> None:
    """Undo what a request to end has left, if the program caught it and begins another run."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) is _ignored:
        signal.signal(signal.SIGTERM, _on_end)
    if main and signal.getsignal(signal.SIGHUP) is _ignored:
        signal.signal(signal.SIGHUP, _on_end)


def ends_with_terminal() -> bool:
    """Return whether SIGHUP ends this process: not if it is ignored, as by nohup."""
    return signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


def _on_end(number: int, _frame: FrameType | None) -> NoReturn:
    for each in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is _on_end:
            signal.signal(each, _ignored)
    raise Terminated(REASONS[signal.Signals(number)], number)


def _ignored(_number: int, _frame: FrameType | None) -> None:
    """Do nothing; unlike SIG_IGN, which a program started by this one would inherit."""
