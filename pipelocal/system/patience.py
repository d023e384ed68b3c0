"""How long a wait lasts: time counts only while this process runs.

A scheduler may suspend a whole job for an hour, and a user may press Ctrl-Z. The clock of the system goes
on meanwhile, so that every wait would find its time over on waking, though nobody hangs. So a wait looks at
its patience again and again, and what has passed between two looks counts no further than a little more
than the time between them::

    looks       |   |   |   |   (suspended for an hour)   |   |   |
    counts        +   +   +               + at most 1 s     +   +

A rank that is stopped alone is still found: its neighbours run, and their time counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

MOST_S = 1.0
"""Most seconds that count between two looks; what waits looks some ten times a second."""


class Patience:
    """The patience of one wait, which begins when it is made.

    Args:
        seconds: how long to wait.
        clock: seconds that only grow.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._left = seconds
        self._most = min(MOST_S, seconds / 4)
        self._clock = clock
        self._looked = clock()

    def left(self) -> float:
        """Seconds that are left, 0 if none are; to be asked at least once a second."""
        now = self._clock()
        self._left -= min(now - self._looked, self._most)
        self._looked = now
        return max(0.0, self._left)

    def over(self) -> bool:
        """Whether none are left; to be asked at least once a second."""
        return self.left() <= 0
