"""When the source puts a marker on the stream, and when it stops before the end."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipelocal.stopping import Wishes

Agree = Callable[[int], int]


class Markers:
    """Says after each training batch whether a snapshot is due.

    Args:
        every: training batches between two snapshots; None for not by batches.
        seconds: time between two; None for not by time.
        wishes: what signals ask for.
        done: training batches before the first that is asked about.
        agree: with several sources, the greatest of what each one gives.
        clock: seconds from any start.
    """

    def __init__(
        self,
        *,
        every: int | None,
        seconds: float | None,
        wishes: Wishes,
        done: int = 0,
        agree: Agree | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every = every
        self._seconds = seconds
        self._wishes = wishes
        self._done = done
        self._agree = agree
        self._clock = clock
        self._last = clock()
        self.stop = False
        """Whether the stream is to end after the batch before."""

    def due(self, done: int, total: int) -> bool:
        """Whether a marker follows the batch after which ``done`` of ``total`` are trained on."""
        by_count = self._every is not None and done // self._every > self._done // self._every
        self._done = done
        self.stop = self._wishes.stop
        wished = self._wishes.take_snapshot() or self.stop
        by_time = self._seconds is not None and self._clock() - self._last >= self._seconds
        wished |= by_time
        if self._agree is not None:  # signals and clocks are each process's own
            agreed = self._agree(wished + self.stop)
            wished, self.stop = agreed > 0, agreed > 1
        if wished or by_count or done == total:
            self._last = self._clock()
            return True
        return False
