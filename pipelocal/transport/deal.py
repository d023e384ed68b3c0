"""How the events of a stream are dealt to the replicas of a stage: a rule that both ends of an edge know.

Event ``n`` that holds a batch goes to replica ``n mod r`` of a stage with r replicas; markers go to all.
From a stage with two replicas to one with three (events 0 to 5; each arrow is an edge of its own)::

    replica 0 of 2:  0 -> replica 0 of 3     2 -> replica 2     4 -> replica 1
    replica 1 of 2:  1 -> replica 1 of 3     3 -> replica 0     5 -> replica 2

So nobody asks whose turn it is, and every replica meets its events in the order of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm


@dataclass(frozen=True, kw_only=True)
class Deal:
    """Every so-many-th event, from a certain one on."""

    every: int = 1
    first: int = 0
    """From 0 to ``every - 1``."""

    def has(self, number: int) -> bool:
        """Whether a batch with this number is among them."""
        return number % self.every == self.first

    def after(self, number: int) -> int:
        """The number of the first one behind ``number``."""
        return number + 1 + (self.first - number - 1) % self.every

    def of_edge(self, other: Deal) -> Deal | None:
        """What goes from a replica that has these to one that has others; None if nothing ever does."""
        if (self.first - other.first) % gcd(self.every, other.every):
            return None
        every = lcm(self.every, other.every)
        first = next(n for n in range(self.first, every, self.every) if other.has(n))
        return Deal(every=every, first=first)


EVERYTHING = Deal()
"""Of a stage without replicas."""
