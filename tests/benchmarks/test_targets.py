"""Targets, and the intervals by which figures of several rounds are held against them."""

import random
import statistics

import pytest

from benchmarks import common
from benchmarks.intervals import interval_of_median


@pytest.mark.parametrize(
    ("count", "places"), [(1, None), (5, None), (6, (0, 5)), (8, (0, 7)), (9, (1, 7)), (12, (2, 9))]
)
def test_places_of_the_interval_are_those_of_the_tables(
    count: int, places: tuple[int, int] | None
) -> None:
    """Of the sign test at 95 %: from the 2nd lowest to the 2nd highest of 9 values, and so on."""
    values = [float(value) for value in range(count)]
    random.Random(0).shuffle(values)
    assert interval_of_median(values) == places


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of a lopsided distribution; by chance it may do so a little less often in 2,000 draws."""
    draw = random.Random(0)
    median = statistics.NormalDist().inv_cdf(0.5)
    held = 0
    for _ in range(2000):
        found = interval_of_median([draw.gauss(0, 1) ** 3 for _ in range(9)])
        assert found is not None
        held += found[0] <= median**3 <= found[1]
    assert held / 2000 > 0.94


def test_a_figure_of_rounds_meets_a_goal_only_with_its_whole_interval() -> None:
    sure, unsure = [1.2, 1.3, 1.25, 1.22, 1.4, 1.21], [1.2, 1.3, 1.25, 0.9, 1.4, 1.21]
    met, not_met = common.at_least("a", sure, 1.1), common.at_least("b", unsure, 1.1)
    assert (met.met, not_met.met) == (True, False)
    assert not_met.value == pytest.approx(1.23)
    assert not_met.interval == (0.9, 1.4)
    assert common.at_most("c", unsure, 1.4).met
    assert not common.at_most("d", unsure, 1.39).met


def test_few_rounds_and_single_figures_are_held_by_their_value() -> None:
    few, single = common.at_least("a", [1.0, 2.0, 3.0], 1.5), common.at_most("b", 1.0, 1.0)
    assert (few.value, few.interval, few.met) == (2.0, None, True)
    assert (single.value, single.interval, single.met) == (1.0, None, True)
