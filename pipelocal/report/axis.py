"""Chooses the range and the ticks of an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOG_FROM = 30.0
"""Greatest over smallest value from which an axis of positive values is logarithmic."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A range of values on so many pixels.

    Args:
        low: the value at the start.
        high: the value at the end.
        start: where the start is.
        end: where the end is.
        ticks: the values that are named.
        log: whether the axis is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    @classmethod
    def of(
        cls, values: Sequence[float], start: float, end: float, *, ticks: int, log: bool = False
    ) -> Axis:
        """Make an axis on which values fit.

        Args:
            values: at least one.
            start: where the axis begins.
            end: where it ends.
            ticks: number of ticks, roughly.
            log: whether it may be logarithmic.
        """
        low, high = min(values), max(values)
        if log and low > 0 and high / low >= LOG_FROM:
            return cls(
                low=low, high=high, start=start, end=end, ticks=_log_ticks(low, high), log=True
            )
        if low == high:
            low, high = low - (abs(low) / 10 or 0.5), high + (abs(high) / 10 or 0.5)
        step = _nice((high - low) / ticks)
        first = math.ceil(low / step - 1e-9)
        found: list[float] = []
        while (first + len(found)) * step <= high + 1e-9 * step:
            found.append((first + len(found)) * step)
        return cls(low=low, high=high, start=start, end=end, ticks=tuple(found))

    def at(self, value: float) -> float:
        """Return where a value is."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def label(self, value: float) -> str:
        """Return a tick's value as text, with as many digits as tell it from the others."""
        texts = [shown(tick) for tick in self.ticks]
        if len(set(texts)) == len(texts):
            return shown(value)
        step = self.ticks[1] - self.ticks[0]
        return f"{value:.{max(0, math.ceil(-math.log10(step)))}f}"


def _nice(step: float) -> float:
    """Return the next number of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((times * power for times in (1, 2, 5) if times * power >= step * 0.999), 10 * power)


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for times in ((1,), (1, 3), (1, 2, 5)):
        found = [each * 10.0**power for power in powers for each in times]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 3:
            break
    every = -(-len(found) // 6)
    return tuple(found[::every])


def shown(value: float) -> str:
    """Format a value at a tick: ``0.05``, ``1,200``, ``12k``, ``3e-05``."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        return f"{value:.3g}"
    if size >= 10_000:
        return f"{value / 1000:.4g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
