"""Which of the units that follow a head of a given depth is made of, against all rows there are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelocal.heads.rows import Depth, Rule, choose_row


def rows(kinds: Sequence[int]) -> list[tuple[int, ...]]:
    """All rows of at least one unit that lead from the cut to the classifier."""

    def fits(row: tuple[int, ...]) -> bool:
        takes = [kinds[i] for i in row]
        makes = [kinds[i + 1] for i in row]
        return takes == [kinds[0], *makes[:-1]] and makes[-1] == kinds[-1]

    units = range(len(kinds) - 1)
    lengths = range(1, len(kinds))
    return [row for n in lengths for row in itertools.combinations(units, n) if fits(row)]


def best_of(kinds: Sequence[int], depth: Depth, rule: Rule | None) -> list[int]:
    """The row that is wanted, found by trying all."""
    fitting = rows(kinds)
    lengths = {len(row) for row in fitting}
    if depth is None:
        length, rule = min(lengths), rule or "next"
    else:
        most = len(kinds) if depth == "all" else depth
        length = max((n for n in lengths if n <= most), default=min(lengths))

    def distance(row: tuple[int, ...]) -> Fraction:
        """From AugLocal's places, l + (L - l - 1) / D * i with l = -1, not rounded; or from the first."""
        step = Fraction(len(kinds) - 1, length)
        wanted = [i if rule == "next" else (i + 1) * step - 1 for i in range(length)]
        return sum((abs(Fraction(a) - b) for a, b in zip(row, wanted, strict=True)), Fraction(0))

    of_length: list[tuple[int, ...]] = [row for row in fitting if len(row) == length]
    of_length.sort(key=lambda row: (distance(row), row))
    return list(of_length[0])


@given(
    st.lists(st.sampled_from([1, 2, 3]), min_size=2, max_size=9),
    st.sampled_from([None, "all", *range(1, 10)]),
    st.sampled_from([None, "even", "next"]),
)
@example([1, 2, 1, 2, 1], 3, "even")  # rows of 2 and 4 units alone
def test_the_row_is_the_nearest_there_is(kinds: list[int], depth: Depth, rule: Rule | None) -> None:
    assert choose_row(kinds, depth, rule) == best_of(kinds, depth, rule)


def test_the_ends() -> None:
    """Where nothing follows, and with no unit at all."""
    assert choose_row([1]) == choose_row([1], "all") == choose_row([1, 2, 1], 0) == []
    assert choose_row([1, 2], 0) is None
    assert choose_row([1, 2, 2, 3], "all") == choose_row([1, 2, 2, 3], 99) == [0, 1, 2]


@pytest.mark.parametrize(
    ("depth", "rule", "expected"),
    [
        (None, None, [2, 5]),
        (1, "even", [2, 5]),  # as few as there can be
        (4, "even", [1, 2, 5, 7]),
        (4, "next", [0, 1, 2, 5]),
    ],
)
def test_behind_the_first_block_of_a_resnet(
    depth: Depth, rule: Rule | None, expected: list[int]
) -> None:
    assert choose_row([16, 16, 16, 32, 32, 32, 64, 64, 64], depth, rule) == expected
