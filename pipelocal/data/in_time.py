"""Ends loading in this process that hangs.

Neither a data set nor a collate function looks at a clock, so a thread does, and sends the main thread a
signal, which ends what it waits for: a network, a lock, or Python code. Code that never comes back to Python
cannot be ended so.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelocal.errors import DataError
from pipelocal.system.patience import Patience

SIGNAL: int = getattr(signal, "SIGRTMIN", signal.SIGALRM)
"""Nobody else's, where there are such."""
MOST_S = 0.5
"""Seconds between two looks at the clock."""


def patience_of(timeout_s: float) -> float:
    """Return the seconds that loading a batch may take, of ``--timeout``.

    It is less than the next stage waits, so that what is told is the loader and not that stage.
    """
    return timeout_s - min(5.0, 5 / 8 * timeout_s)


def too_slow(what: str, seconds: float, place: str = "") -> DataError:
    """Return the error for a data set that gives no batch."""
    return DataError(
        f"{what}: the data set gave no batch for {seconds:g} s{place}: it hangs or is too slow: mend it, or "
        f"give a longer --timeout"
    )


class TooSlow(BaseException):
    """Loading took too long; no Exception, which user code might catch.

    Attributes:
        place: what was loaded, in words.
    """

    place = ""


class _Watch:
    """The thread that looks at the clock, one in a process."""

    def __init__(self) -> None:
        self.patience: Patience | None = None
        self._looks_every = MOST_S
        self._thread: threading.Thread | None = None

    def begin(self, seconds: float) -> None:
        self._looks_every = min(MOST_S, seconds / 8)
        if self._thread is None or not self._thread.is_alive():  # a forked process has no thread
            signal.signal(SIGNAL, self._late)
            self._thread = threading.Thread(target=self._look, name="pipelocal-clock", daemon=True)
            self._thread.start()
        self.patience = Patience(seconds)

    def end(self) -> None:
        self.patience = None

    def _look(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while True:
            time.sleep(self._looks_every)
            patience = self.patience
            if patience is not None and patience.over():
                signal.pthread_kill(main, SIGNAL)

    def _late(self, _number: int, _frame: Any) -> None:
        if self.patience is not None and self.patience.over():
            self.patience = None
            raise TooSlow


_watch = _Watch()


@contextmanager
def in_time(seconds: float, what: str) -> Iterator[None]:
    """End a block that takes too long; only in the main thread, as only that can be ended.

    Args:
        seconds: that it may take; 0 for any.
        what: ``train`` or ``test``.

    Raises:
        DataError: it took longer.
    """
    if seconds <= 0 or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch.begin(seconds)
    try:
        yield
    except TooSlow as late:
        raise too_slow(what, seconds, late.place) from None
    finally:
        _watch.end()
