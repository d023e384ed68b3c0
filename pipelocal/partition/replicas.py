"""How many replicas each stage gets.

Batches are dealt to the replicas of a stage in turn, so a stage with r of them that takes ``seconds``
for a batch takes one every ``seconds / r``, and the pipeline keeps the pace of its slowest stage. All
stages update together, when each replica of each stage has had its share of the batches: after the least
common multiple of their numbers, or a multiple of that (``--accumulate``).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from math import inf, lcm

from pipelocal.errors import UserError

AUTO = "auto"
"""What asks for :func:`choose_replicas` in place of numbers."""

AS_GOOD = 1.02
"""A pipeline that takes so many times the best one's time a batch is as good if it updates more often."""

FEW_BATCHES = 64
"""An update of so many batches is never ruled out, however few the ranks."""

MOST_REPLICAS = 4096
"""Of one stage."""


def batches_an_update(replicas: Sequence[int]) -> int:
    """The fewest batches of which every replica of every stage has equally many."""
    return lcm(*replicas)


def choose_replicas(
    seconds: Sequence[float], ranks: int, *, most_batches: int | None = None
) -> list[int]:
    """The replicas with which the slowest stage, replicas counted, is fastest.

    Of all replicas whose slowest stage is within 2 % of the fastest possible, it takes those with the
    fewest batches an update, and of these those with the fewest ranks. Without a bound on the batches an
    update, many stages of unlike cost would get numbers such as 7, 11 and 13, for a few percent more
    speed and so few updates that nothing is learned.

    Numbers with U batches an update are divisors of U. So each U is looked at by itself: there the
    fewest ranks for a given pace are found stage by stage, and the best pace by giving the slowest stage
    its next divisor for as long as the ranks reach. (Whatever is faster needs at least as many for that
    stage, so nothing is lost.)

    Args:
        seconds: of a batch in each stage, without replicas.
        ranks: how many there are; some may be left over.
        most_batches: most batches an update; by default as many as ranks, which is what plain data
            parallelism over them would have, or 64 if that is more. The time that this function takes
            is proportional to it.

    Returns:
        the replicas of each stage, each at least 1; their sum is at most ``ranks``.

    Raises:
        UserError: fewer ranks than stages.
    """
    if ranks < len(seconds):
        raise UserError(
            f"{ranks} rank(s) for {len(seconds)} stages: replicas are chosen where each stage has a rank "
            f"at least, so start {len(seconds)} or more, or cut fewer stages"
        )
    most = max(ranks, FEW_BATCHES) if most_batches is None else most_batches
    by_batches = [_divisors(batches, ranks) for batches in range(1, most + 1)]
    best = inf
    for divisors in by_batches:
        # Most of them cannot keep up with the best so far, which is seen sooner than what they can do.
        if best == inf or _fewest(seconds, ranks, divisors, best) is not None:
            best = min(best, _best_pace(seconds, ranks, divisors))
    for divisors in by_batches:
        found = _fewest(seconds, ranks, divisors, AS_GOOD * best)
        if found is not None:
            return found
    raise AssertionError("the best pace was found with some divisors, and they are here again")


def _divisors(number: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, most) + 1) if number % divisor == 0]


def _fewest(
    seconds: Sequence[float], ranks: int, divisors: Sequence[int], pace: float
) -> list[int] | None:
    """The least divisors with which no stage takes longer than ``pace`` seconds; None if too many."""
    chosen: list[int] = []
    spare = ranks
    for stage in seconds:
        count = next((d for d in divisors if stage / d <= pace), None)
        if count is None or count > spare:
            return None
        chosen.append(count)
        spare -= count
    return chosen


def _best_pace(seconds: Sequence[float], ranks: int, divisors: Sequence[int]) -> float:
    """Seconds of the slowest stage, replicas counted, with the best choice among these divisors."""
    spare = ranks - len(seconds)
    slowest_first = [(-stage, stage, 0) for stage in seconds]
    heapq.heapify(slowest_first)
    while True:
        pace, stage, at = slowest_first[0]
        if at + 1 == len(divisors) or divisors[at + 1] - divisors[at] > spare:
            return -pace
        spare -= divisors[at + 1] - divisors[at]
        heapq.heapreplace(slowest_first, (-stage / divisors[at + 1], stage, at + 1))


def parse_replicas(option: str, text: str, stages: int | None) -> list[int] | None:
    """Replicas from text such as ``2`` (for every stage), ``1,2,1`` (one for each) or ``auto``.

    Args:
        option: where the text comes from, for the error.
        text: what was given.
        stages: number of stages; None where it is not known yet: then a single number stays single, and
            several may be any number.

    Returns:
        the replicas of each stage, or None for ``auto``.

    Raises:
        UserError: they are no whole numbers from 1 to the most, or neither one nor as many as stages.
    """
    if text == AUTO:
        return None
    try:
        replicas = [int(word) for word in text.split(",")]
    except ValueError:
        replicas = []
    counts = (1, len(replicas) if stages is None else stages)
    sound = all(1 <= count <= MOST_REPLICAS for count in replicas)
    if not replicas or not sound or len(replicas) not in counts:
        wanted = "several" if stages is None else f"{stages}"
        example = ",".join(["1", "2", "1"] if stages is None else ["2"] + ["1"] * (stages - 1))
        raise UserError(
            f"{option} {text}: give {AUTO}, one whole number from 1 to {MOST_REPLICAS} for all stages, or "
            f"{wanted} with commas between them, one for each stage, such as {example}"
        )
    return replicas * stages if stages is not None and len(replicas) == 1 else replicas


def paces(
    speeds: Sequence[float] | None, replicas: Sequence[int] | None, stages: int
) -> list[float] | None:
    """How fast each stage's devices are together: to a cut, replicas are a device so many times as fast.

    Args:
        speeds: of a device of each stage; None if they are equal.
        replicas: of each stage; None if they are chosen for the cut and not the cut for them.
        stages: how many there are.

    Returns:
        None if they are equal.
    """
    if replicas is None or len(set(replicas)) == 1:
        return None if speeds is None else list(speeds)
    return [speed * r for speed, r in zip(speeds or [1.0] * stages, replicas, strict=True)]


def replicas_text(replicas: Sequence[int]) -> str:
    """What :func:`parse_replicas` takes: one number if all are the same, else one for each stage."""
    different = len(set(replicas)) > 1
    return ",".join(map(str, replicas if different else replicas[:1]))
