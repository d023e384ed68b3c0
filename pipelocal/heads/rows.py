"""Chooses, among the units that follow a cut, a row that leads to the classifier's input."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

from pipelocal.errors import UserError

Depth = int | Literal["all"] | None
"""How many units: a number, every one that follows, or None for as few as lead to the classifier."""

Rule = Literal["even", "next"]
"""Which ones: evenly spaced over what follows, as AugLocal takes them, or the earliest."""

RULES: tuple[str, ...] = get_args(Rule)


class _Row(NamedTuple):
    """A row of units, linked from its first to its last."""

    cost: int
    place: int
    rest: _Row | None


def check_row(
    depth: Depth = None, rule: Rule | None = None, square: int | None = None, *, what: str
) -> None:
    """Refuse a depth, a rule or a square that there is not.

    Args:
        depth: how many units.
        rule: which ones; None for the default.
        square: pixels of a side of the squares over which maps are averaged; None to leave them as they are.
        what: names the head in the error.

    Raises:
        UserError: says what is wanted.
    """
    whole = isinstance(depth, int) and not isinstance(depth, bool) and depth >= 0
    if not (whole or depth is None or depth == "all"):
        raise UserError(
            f"{what}: depth {depth!r}: give a whole number of units of at least 0, or all"
        )
    if not (square is None or (isinstance(square, int) and square >= 2)):
        raise UserError(f"{what}: square {square!r}: give a whole number of pixels of at least 2")
    if rule is not None and rule not in RULES:
        raise UserError(f"{what}: rule {rule!r}: choose one of {', '.join(RULES)}")


def choose_row(
    kinds: Sequence[Hashable], depth: Depth = None, rule: Rule | None = None
) -> list[int] | None:
    """Choose units such that each takes what the one before it makes.

    Args:
        kinds: what crosses the cut, and what each unit that follows makes; the last is what the classifier
            takes. What is equal counts as the same.
        depth: how many units. Where no row has exactly so many, the longest that has fewer is taken, or,
            if none has, the shortest. With None the shortest of at least one unit.
        rule: which ones; None for ``next`` if ``depth`` is None, and else for ``even``.

    Returns:
        Indices of the units, from 0, in order: those nearest to the places of the rule (by the sum of
        distances; of equally near rows the first). Empty if no unit follows or ``depth`` is 0; None if
        ``depth`` is 0 and what crosses the cut is not what the classifier takes.
    """
    follow = len(kinds) - 1
    if depth == 0:
        return [] if kinds[0] == kinds[-1] else None
    if follow == 0:
        return []
    most = 1 if depth is None else follow if depth == "all" else depth
    lengths = [length for length in _lengths(kinds) if length > 0]
    length = max((each for each in lengths if each <= most), default=lengths[0])
    earliest = rule == "next" or (rule is None and depth is None)
    return _nearest(kinds, length, earliest=earliest)


def _lengths(kinds: Sequence[Hashable]) -> list[int]:
    """Return the lengths of all rows from the cut to the classifier, the shortest first."""
    lengths: dict[Hashable, int] = {
        kinds[-1]: 1
    }  # by what a row takes: bit n says that it has n units
    for takes, makes in reversed(list(pairwise(kinds))):
        lengths[takes] = lengths.get(takes, 0) | lengths.get(makes, 0) << 1
    found = lengths[kinds[0]]
    return [length for length in range(found.bit_length()) if found >> length & 1]


def _nearest(kinds: Sequence[Hashable], length: int, *, earliest: bool) -> list[int]:
    """Return the row of so many units that is nearest to the wanted places; there is one.

    The place wanted for unit i of D, from 1, is i - 1, or i / D of the way through the n that follow:
    n i / D - 1. Distances are counted in 1 / D, which keeps them whole.
    """
    follow = len(kinds) - 1
    best: list[dict[Hashable, _Row]] = [{} for _ in range(length + 1)]
    """By number of units and by what it takes: the nearest row among the units from a place on."""
    for place in reversed(range(follow)):
        takes, makes = kinds[place], kinds[place + 1]
        for units in range(length, 0, -1):  # downwards, so that no row takes this unit twice
            rest = best[units - 1].get(makes)
            if rest is None and (units > 1 or makes != kinds[-1]):
                continue
            number = length - units + 1
            wanted = length * number if earliest else follow * number
            cost = abs(length * (place + 1) - wanted) + (rest.cost if rest else 0)
            known = best[units].get(takes)
            if known is None or cost <= known.cost:
                best[units][takes] = _Row(cost, place, rest)
    row: list[int] = []
    step: _Row | None = best[length][kinds[0]]
    while step is not None:
        row.append(step.place)
        step = step.rest
    return row
