"""When the source puts a marker on the stream, and when it stops before the end."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipelocal.system.signals import Wishes

Agree = Callable[[int], int]

LEAST_S = 5.0
"""Between two snapshots of which the second is taken for an evaluation's sake alone."""
WORTH = 100.0
"""Or so many times what the last one cost, if that is more: a hundredth of the time at most."""
ASK_S = 0.2
"""About so often several sources agree."""
MANY = 1 << 16


class Markers:
    """Says where a snapshot is due.

    Args:
        every: training batches between two snapshots; None for not by batches.
        seconds: time between two.
        wishes: what signals ask for.
        done: training batches before the first that is asked about.
        price: seconds that the last snapshot has cost; infinite while one is being written, and where it is
            not known.
        agree: with several sources, the greatest of what each one gives.
        clock: seconds from any start.
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
        """Whether the stream is to end here, behind a marker."""

    def due(self, done: int) -> bool:
        """Whether a marker follows the batch after which ``done`` batches are trained on."""
        by_count = self._every is not None and done // self._every > self._done // self._every
        self._done = done
        wished = self._wished(self._passed() >= self._seconds)
        return self._noted(wished or by_count)

    def due_after_evaluation(self) -> bool:
        """Whether one follows an evaluation, so that the best weights are there to be kept."""
        worth = self._passed() >= max(LEAST_S, WORTH * self._price())
        return self._noted(self._wished(worth, now=True))

    def stopping(self) -> bool:
        """Whether the stream is to end before the next batch of an evaluation; other wishes are kept."""
        self._kept = self._wished(False)
        return self.stop

    def _passed(self) -> float:
        return self._clock() - self._last

    def _noted(self, due: bool) -> bool:
        if due:
            self._last = self._clock()
        return due

    def _wished(self, own: bool, *, now: bool = False) -> bool:
        """Whether any source wishes for a marker, for a reason of its own or because a signal asks."""
        if self._agree is None:
            self.stop = self._wishes.stop
            return self._wishes.take_snapshot() or self._take_kept() or own or self.stop
        # Signals and clocks are each process's own, and an agreement takes time: not at each batch.
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
        """After how many more questions to agree again, by how long the last ones took."""
        now = self._clock()
        took, self._asked = now - self._asked, now
        fitting = int(self._between * ASK_S / took) if took > 0 else MANY
        return max(1, min(fitting, 2 * self._between, MANY - 1))
