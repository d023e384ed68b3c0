"""How sure a median over rounds is."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

LEVEL = 0.95


def interval_of_median(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return an interval that holds the median of what the values are drawn from, with this probability.

    It reaches from the k-th lowest to the k-th highest value. The median lies outside only if fewer than k
    of n draws fall on one side of it, whatever they are drawn from: of that the binomial distribution gives
    the probability. Six values are the fewest for 0.95.

    Returns:
        Least and greatest; None if there are too few values.
    """
    ordered, n = sorted(values), len(values)
    outside, kept = 0.0, 0
    for k in range(1, n // 2 + 1):
        outside += 2 * comb(n, k - 1) / 2**n  # k - 1 draws or fewer on one side
        if 1 - outside < level:
            break
        kept = k
    return (ordered[kept - 1], ordered[n - kept]) if kept else None
