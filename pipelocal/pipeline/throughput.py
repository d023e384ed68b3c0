"""Measures a stage's time: busy or waiting, training or evaluating."""

import time
from collections.abc import Callable

Clock = Callable[[], float]


class Throughput:
    """Adds up a stage's busy seconds and its training rate.

    Time between two training batches is training time, whatever its cause; the time from the first
    batch of an evaluation to its end is not. The very first batch counts neither as time nor as
    samples, because it includes one-time costs.

    Args:
        clock: returns seconds from an arbitrary start.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._started = self._window_started = clock()
        self._training_since: float | None = None
        self._ended: float | None = None
        self._busy = self._window_busy = 0.0
        self._window_rows = 0
        self.trained_rows = 0
        self.training_s = 0.0

    def add_busy(self, seconds: float) -> None:
        """Add seconds in which the stage worked and did not wait for an edge."""
        self._busy += seconds
        self._window_busy += seconds

    def trained(self, rows: int) -> None:
        """Count a finished training batch of ``rows`` samples."""
        now = self._clock()
        if self._training_since is not None:
            self.training_s += now - self._training_since
            self.trained_rows += rows
        self._training_since = now
        self._window_rows += rows

    def evaluated(self) -> None:
        """Exclude a finished evaluation from the training time."""
        if self._training_since is not None:
            self._training_since = self._clock()
        self._restart_window()

    def read_window(self) -> tuple[float, float]:
        """Return samples per second and busy fraction since the last call."""
        elapsed = max(self._clock() - self._window_started, 1e-9)
        reading = self._window_rows / elapsed, min(1.0, self._window_busy / elapsed)
        self._restart_window()
        return reading

    def ended(self) -> None:
        """Stop counting, at the end of the stream."""
        self._ended = self._clock()

    @property
    def seconds(self) -> float:
        """Seconds from the start to the end of the stream, or until now."""
        return (self._clock() if self._ended is None else self._ended) - self._started

    @property
    def samples_per_second(self) -> float:
        """Training samples per second of training time, over the whole run."""
        return self.trained_rows / self.training_s if self.training_s else 0.0

    @property
    def busy_fraction(self) -> float:
        """Busy fraction, 0 to 1, over the whole run."""
        return min(1.0, self._busy / max(self.seconds, 1e-9))

    def _restart_window(self) -> None:
        self._window_started = self._clock()
        self._window_busy = 0.0
        self._window_rows = 0
