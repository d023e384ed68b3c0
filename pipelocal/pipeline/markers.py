"""When the source puts a marker on the stream, and when it stops before the end."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipelocal.stopping import Wishes


class Markers:
    """Says after each training batch whether a snapshot is due.

    Args:
        every: training batches between two snapshots; None for not by batches.
        seconds: time between two; None for not by time.
        wishes: what signals ask for.
        clock: seconds from any start.
    """

    def __init__(
        self,
        *,
        every: int | None,
        seconds: float | None,
        wishes: Wishes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every = every
        self._seconds = seconds
        self._wishes = wishes
        self._clock = clock
        self._last = clock()

    def due(self, done: int, total: int) -> bool:
        """Whether a marker follows the batch after which ``done`` of ``total`` are trained on."""
        wished = self._wishes.take_snapshot() or self.stop
        by_count = self._every is not None and done % self._every == 0
        by_time = self._seconds is not None and self._clock() - self._last >= self._seconds
        if wished or by_count or by_time or done == total:
            self._last = self._clock()
            return True
        return False

    @property
    def stop(self) -> bool:
        """Whether the stream is to end after the batch before."""
        return self._wishes.stop
