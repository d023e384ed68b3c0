"""Formats figures for users: bytes, seconds, losses, rates, and unknown values."""

from collections.abc import Callable

UNKNOWN = "-"
"""Shown for a figure that has not been measured."""


def format_bytes(count: float) -> str:
    """Format bytes with a binary unit: ``512 B``, ``1.5 KiB``, ``812 MiB``, ``23.4 GiB``."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1023.5 and len(units) > 1:
        count /= 1024
        del units[0]
    digits = 0 if units[0] == "B" or count >= 99.95 else 1
    return f"{count:.{digits}f} {units[0]}"


def format_seconds(seconds: float) -> str:
    """Format a duration: ``12.3 s``, ``2 min 05 s``, ``1 h 02 min``, ``3 d 04 h``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    if seconds < 86400 - 30:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours:02d} h"


def or_unknown(format_figure: Callable[[float], str], figure: float | None) -> str:
    """Format a figure; :data:`UNKNOWN` if it is None."""
    return UNKNOWN if figure is None else format_figure(figure)


def format_loss(loss: float) -> str:
    """Format a loss: ``0.312``, and ``1.2e+05`` from 1000 on."""
    return f"{loss:.3f}" if abs(loss) < 1000 else f"{loss:.1e}"


def format_figure(value: float) -> str:
    """Format a metric: ``0.912``, ``-0.345``, and ``1.2e+05`` from 1000 on."""
    return format_loss(value)


def short_name(metric: str) -> str:
    """Return the name of a metric as narrow places show it: ``acc`` for accuracy."""
    return {"accuracy": "acc"}.get(metric, metric)


def format_rate(per_second: float) -> str:
    """Format a rate per second: ``12.3``, and ``3211`` from 100 on."""
    return f"{per_second:.1f}" if per_second < 99.95 else f"{per_second:.0f}"
