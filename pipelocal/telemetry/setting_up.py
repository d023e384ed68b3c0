"""Says what a run is busy with before there are figures to show."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO


class SettingUp:
    """Lines about a start: the first at once, a further one only if that before it was long ago.

    So a quick start says little, and a slow one says what takes the time.

    Args:
        stream: where they are written.
        quiet_s: seconds between two lines, at least.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        quiet_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._quiet_s = quiet_s
        self._clock = clock
        self._next = float("-inf")

    def now(self, what: str) -> None:
        """Say what begins, such as ``reading the data``."""
        if self._clock() >= self._next:
            self._next = self._clock() + self._quiet_s
            self._stream.write(f"{what} ...\n")
            self._stream.flush()
