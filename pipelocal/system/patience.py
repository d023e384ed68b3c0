"""Timeouts that count time only while this process runs.

A scheduler may suspend a whole job for an hour, and a user may press Ctrl-Z. The system clock continues
meanwhile, so that every wait would time out on resuming, although nothing hangs. So a wait checks its timeout
repeatedly, and the time between two checks counts up to a limit a little above the normal interval::

    looks       |   |   |   |   (suspended for an hour)   |   |   |
    counts        +   +   +               + at most 1 s     +   +

A rank that is stopped alone is still detected: its neighbours run, and their time counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

MOST_S = 1.0
"""Most seconds that count between two checks; waits check about ten times per second."""


class Patience:
    """The timeout of one wait, which starts when the object is created.

    Args:
        seconds: seconds to wait.
        clock: returns monotonic seconds.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._left = seconds
        self._most = min(MOST_S, seconds / 4)
        self._clock = clock
        self._looked = clock()

    def left(self) -> float:
        """Return the seconds left, at least 0; call it at least once per second."""
        now = self._clock()
        self._left -= min(now - self._looked, self._most)
        self._looked = now
        return max(0.0, self._left)

    def over(self) -> bool:
        """Return whether the time is over; call it at least once per second."""
        return self.left() <= 0
