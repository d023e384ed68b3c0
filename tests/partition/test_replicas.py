"""How many replicas each stage gets."""

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelocal.errors import UserError
from pipelocal.partition.replicas import (
    AS_GOOD,
    batches_an_update,
    choose_replicas,
    parse_replicas,
)

SECONDS = st.one_of(st.sampled_from([1.0, 2.0, 3.0, 5.0]), st.floats(0.01, 10))


def pace(seconds: Sequence[float], replicas: Sequence[int]) -> float:
    return max(stage / r for stage, r in zip(seconds, replicas, strict=True))


def brute_force(seconds: list[float], ranks: int, most_batches: int) -> tuple[int, int]:
    """Batches an update, and ranks, of the best of all replicas."""
    spare = ranks - len(seconds)
    every = [
        replicas
        for replicas in itertools.product(range(1, spare + 2), repeat=len(seconds))
        if sum(replicas) <= ranks and math.lcm(*replicas) <= most_batches
    ]
    best = min(pace(seconds, replicas) for replicas in every)
    return min(
        (math.lcm(*replicas), sum(replicas))
        for replicas in every
        if pace(seconds, replicas) <= AS_GOOD * best
    )


@given(st.lists(SECONDS, min_size=1, max_size=4), st.integers(0, 7), st.integers(1, 16))
def test_equals_brute_force(seconds: list[float], spare: int, most_batches: int) -> None:
    ranks = len(seconds) + spare
    bounded = choose_replicas(seconds, ranks, most_batches=most_batches)
    assert (batches_an_update(bounded), sum(bounded)) == brute_force(seconds, ranks, most_batches)
    # So few ranks can have no more than 30 batches an update, which is never ruled out unasked.
    replicas = choose_replicas(seconds, ranks)
    assert (batches_an_update(replicas), sum(replicas)) == brute_force(seconds, ranks, 10**9)
    assert min(replicas) >= 1


@given(st.lists(SECONDS, min_size=1, max_size=12), st.integers(0, 40))
def test_nothing_is_faster_unless_it_updates_too_seldom(seconds: list[float], spare: int) -> None:
    """Where any number will do, the next rank always goes to the slowest stage."""
    ranks = len(seconds) + spare
    greedy = [1] * len(seconds)
    for _ in range(spare):
        slowest = max(range(len(seconds)), key=lambda k: seconds[k] / greedy[k])
        greedy[slowest] += 1
    replicas = choose_replicas(seconds, ranks)
    assert batches_an_update(replicas) <= max(ranks, 64)
    assert sum(replicas) <= ranks
    if batches_an_update(greedy) <= max(ranks, 64):
        assert pace(seconds, replicas) <= AS_GOOD * pace(seconds, greedy)
    assert pace(seconds, replicas) >= pace(seconds, greedy)


@given(st.lists(st.floats(0.5, 2), min_size=64, max_size=64))
def test_many_stages_and_ranks(seconds: list[float]) -> None:
    replicas = choose_replicas(seconds, 512)
    assert sum(replicas) <= 512
    assert batches_an_update(replicas) <= 512
    assert pace(seconds, replicas) <= 1.3 * sum(seconds) / 512


def test_a_stage_of_twice_the_time_gets_twice_the_ranks() -> None:
    assert choose_replicas([1.0, 2.0, 1.0], 4) == [1, 2, 1]
    assert choose_replicas([1.0, 2.0, 1.0], 8) == [2, 4, 2]


def test_fewer_batches_an_update_for_next_to_no_time() -> None:
    """Seven would be 1.5 % faster than six, but 42 batches an update in place of 6."""
    assert choose_replicas([6.0, 6.09], 13) == [6, 6]
    assert choose_replicas([6.0, 6.2], 13) == [6, 7]


def test_ranks_that_are_of_no_use_are_left_over() -> None:
    assert choose_replicas([1.0, 1.0], 3) == [1, 1]


def test_fewer_ranks_than_stages() -> None:
    with pytest.raises(UserError, match=r"2 rank\(s\) for 3 stages: .* start 3 or more"):
        choose_replicas([1.0] * 3, 2)


def test_what_is_parsed() -> None:
    assert parse_replicas("--replicas", "2", 3) == [2, 2, 2]
    assert parse_replicas("--replicas", "1,2, 1", 3) == [1, 2, 1]
    assert parse_replicas("--replicas", "auto", 3) is None
    assert parse_replicas("--replicas", "2", None) == [2]
    assert parse_replicas("--replicas", "1,2", None) == [1, 2]


@pytest.mark.parametrize(
    ("text", "stages", "said"),
    [
        (
            "0",
            3,
            "--replicas 0: give auto, one whole number from 1 to 4096 for all stages, or 3 with",
        ),
        ("1,2", 3, "such as 2,1,1"),
        ("1,-1", 2, "such as 2,1"),
        ("1,2", 1, "or 1 with commas"),
        ("two", 2, "--replicas two: give auto"),
        ("1.5", 2, "--replicas 1.5: give auto"),
        ("", None, "or several with commas between them, one for each stage, such as 1,2,1"),
        ("1,,2", None, "--replicas 1,,2: give auto"),
    ],
)
def test_what_is_refused(text: str, stages: int | None, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_replicas("--replicas", text, stages)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
