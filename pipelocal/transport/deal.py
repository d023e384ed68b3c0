"""Deals the events of a stream to the replicas of a stage, by a rule known to both ends of an edge.

Event ``n`` that holds a batch goes to replica ``n mod r`` of a stage with r replicas; markers go to all.
From a stage with two replicas to one with three (events 0 to 5; each arrow is an edge of its own)::

    replica 0 of 2:  0 -> replica 0 of 3     2 -> replica 2     4 -> replica 1
    replica 1 of 2:  1 -> replica 1 of 3     3 -> replica 0     5 -> replica 2

So no communication is needed to decide whose turn it is, and every replica gets its events in stream order.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm


@dataclass(frozen=True, kw_only=True)
class Deal:
    """Every ``every``-th event, starting with ``first``."""

    every: int = 1
    first: int = 0
    """First event, from 0 to ``every - 1``."""

    def has(self, number: int) -> bool:
        """Return whether the event with this number is included."""
        return number % self.every == self.first

    def after(self, number: int) -> int:
        """Return the number of the first included event after ``number``."""
        return number + 1 + (self.first - number - 1) % self.every

    def of_edge(self, other: Deal) -> Deal | None:
        """Return the events common to this deal and another; None if there are none."""
        if (self.first - other.first) % gcd(self.every, other.every):
            return None
        every = lcm(self.every, other.every)
        first = next(n for n in range(self.first, every, self.every) if other.has(n))
        return Deal(every=every, first=first)


EVERYTHING = Deal()
"""All events, for a stage without replicas."""
