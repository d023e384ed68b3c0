"""The dynamic programme finds what brute force finds."""

import itertools
import math
import random

from hypothesis import given
from hypothesis import strategies as st

from pipelocal.partition.optimal import minimise_largest


def brute_force(units: int, stages: int, costs: dict[tuple[int, int, int], float]) -> float:
    """The least largest cost over every possible cut."""
    least = math.inf
    for inner in itertools.combinations(range(1, units), stages - 1):
        bounds = [0, *inner, units]
        largest = max(costs[bounds[k], bounds[k + 1], k + 1] for k in range(stages))
        least = min(least, largest)
    return least


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32), st.floats(0, 0.6))
def test_equals_brute_force_on_any_cost(
    units: int, stages: int, seed: int, impossible: float
) -> None:
    """Costs without any structure, some of them infinite: memory limits make such."""
    generator = random.Random(seed)
    costs = {
        (start, stop, stage): math.inf
        if generator.random() < impossible
        else generator.choice([0.0, 1.0, generator.random()])
        for start in range(units)
        for stop in range(start + 1, units + 1)
        for stage in range(1, stages + 1)
    }
    cuts = minimise_largest(units, stages, lambda i, j, k: costs[i, j, k])
    if stages > units:
        assert cuts is None
        return
    least = brute_force(units, stages, costs)
    if math.isinf(least):
        assert cuts is None
        return
    assert cuts is not None
    assert [cut.start for cut in cuts[1:]] == [cut.stop for cut in cuts[:-1]]
    assert (cuts[0].start, cuts[-1].stop, len(cuts)) == (0, units, stages)
    assert all(cut.stop > cut.start for cut in cuts)
    assert max(costs[cut.start, cut.stop, k + 1] for k, cut in enumerate(cuts)) == least


def test_a_known_case() -> None:
    times = [5, 1, 1, 1, 4, 3]
    cuts = minimise_largest(6, 3, lambda start, stop, _: sum(times[start:stop]))
    assert cuts is not None
    assert max(sum(times[cut.start : cut.stop]) for cut in cuts) == 6


def test_a_slow_device_gets_less() -> None:
    speeds = [1.0, 1.0, 0.5]
    cuts = minimise_largest(10, 3, lambda i, j, k: (j - i) / speeds[k - 1])
    assert cuts is not None
    assert [cut.stop - cut.start for cut in cuts] == [4, 4, 2]


def test_the_first_stage_may_need_several_units() -> None:
    """The best cut would leave the first unit alone."""
    costs = [1.0, 4.0, 4.0, 1.0]
    cuts = minimise_largest(4, 3, lambda start, stop, _: sum(costs[start:stop]), first=2)
    assert cuts is not None
    assert [cut.stop for cut in cuts] == [2, 3, 4]
    assert minimise_largest(3, 2, lambda *_: 1.0, first=3) is None
