"""What signals ask for while snapshots are taken: one now (SIGUSR1), or one and then the end.

SIGTERM and Ctrl-C would end a run where it stands. With snapshots the source puts a marker on the stream
and ends it there, so that nothing is lost. That takes as long as a batch takes through all stages and a
file takes to be written; if it takes longer than :data:`PATIENCE_S`, the run ends all the same.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipelocal.errors import Terminated

PATIENCE_S = 20.0
"""Less than the 30 s after which torchrun kills what it told to end."""
REPEATED_S = 3.0
"""A second Ctrl-C after so long means now. (torchrun passes on the first one, which comes twice then.)"""


class Wishes:
    """What this process was asked for by signals."""

    def __init__(self) -> None:
        self.stop = False
        """Whether to end after a snapshot."""
        self.reason = ""
        """Why, if so."""
        self._snapshot = False
        self._since = 0.0

    def take_snapshot(self) -> bool:
        """Whether a snapshot was asked for since the last call."""
        wanted, self._snapshot = self._snapshot, False
        return wanted

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen within this block; elsewhere than on the main thread nothing is changed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGUSR1: self._on_snapshot,
            signal.SIGALRM: _on_alarm,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        interrupted = number == signal.SIGINT
        if not self.stop:
            self.stop, self._since = True, time.monotonic()
            self.reason = "interrupted by the user" if interrupted else "terminated by a signal"
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
        elif interrupted and time.monotonic() - self._since > REPEATED_S:
            raise KeyboardInterrupt

    def _on_snapshot(self, _number: int, _frame: FrameType | None) -> None:
        self._snapshot = True


def _on_alarm(_number: int, _frame: FrameType | None) -> None:
    raise Terminated(
        f"terminated by a signal, and no snapshot was complete within {PATIENCE_S:g} s"
    )
