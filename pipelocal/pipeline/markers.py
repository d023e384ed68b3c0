"""Decides when the source puts a marker on the stream, and when it stops early."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipelocal.system.signals import Wishes

Agree = Callable[[int], int]

LEAST_S = 5.0
"""Least seconds before a snapshot that is taken only because of an evaluation."""
WORTH = 100.0
"""Least time as a multiple of the last snapshot's cost: snapshots take a hundredth of the time at most."""
ASK_S = 0.2
"""Approximate seconds between agreements of several sources."""
MANY = 1 << 16


class Markers:
    """Decides when a snapshot is due.

    Args:
        every: training batches between two snapshots; None for no such interval.
        seconds: time between two snapshots.
        wishes: requests made by signals.
        done: training batches before the stream starts.
        price: seconds that the last snapshot took; infinite while one is being written, and if
            unknown.
        agree: with several sources, returns the maximum of their values.
        clock: returns seconds from an arbitrary start.
    """

    def __init__(
        self,
        *,
        every: int | None,
        seconds: float,
        wishes: Wishes,
        done: int = 0,
        price: Callable[[], float] = lambda: 0.0,
        agree: Agree | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every = every
        self._seconds = seconds
        self._wishes = wishes
        self._done = done
        self._price = price
        self._agree = agree
        self._clock = clock
        self._last = self._asked = clock()
        self._between = self._left = 1
        self._kept = False
        self.stop = False
        """Whether the stream should end here, after a marker."""

    def due(self, done: int) -> bool:
        """Return whether a marker follows the batch that completes ``done`` batches."""
        by_count = self._every is not None and done // self._every > self._done // self._every
        self._done = done
        wished = self._wished(self._passed() >= self._seconds)
        return self._noted(wished or by_count)

    def due_after_evaluation(self) -> bool:
        """Return whether a marker follows an evaluation, so that the best weights can be kept."""
        worth = self._passed() >= max(LEAST_S, WORTH * self._price())
        return self._noted(self._wished(worth, now=True))

    def stopping(self) -> bool:
        """Return whether to stop before the next evaluation batch; other requests stay pending."""
        self._kept = self._wished(False)
        return self.stop

    def _passed(self) -> float:
        return self._clock() - self._last

    def _noted(self, due: bool) -> bool:
        if due:
            self._last = self._clock()
        return due

    def _wished(self, own: bool, *, now: bool = False) -> bool:
        """Return whether any source wants a marker, for its own reasons or because of a signal."""
        if self._agree is None:
            self.stop = self._wishes.stop
            return self._wishes.take_snapshot() or self._take_kept() or own or self.stop
        # Signals and clocks differ between processes, and agreeing takes time: not at every batch.
        self._left -= 1
        if self._left > 0 and not now:
            return self._take_kept()
        wish = 2 if self._wishes.stop else int(self._wishes.take_snapshot() or own)
        agreed, self._left = divmod(self._agree(wish * MANY + self._next()), MANY)
        self._between = self._left
        self.stop = agreed == 2
        return self._take_kept() or agreed > 0

    def _take_kept(self) -> bool:
        kept, self._kept = self._kept, False
        return kept

    def _next(self) -> int:
        """Return the number of calls until the next agreement, from how long the last calls took."""
        now = self._clock()
        took, self._asked = now - self._asked, now
        fitting = int(self._between * ASK_S / took) if took > 0 else MANY
        return max(1, min(fitting, 2 * self._between, MANY - 1))
