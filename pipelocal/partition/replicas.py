"""Chooses how many replicas each stage gets.

Batches are dealt to the replicas of a stage in turn, so a stage with r replicas that takes ``seconds`` per
batch accepts one every ``seconds / r``, and the pipeline runs at the pace of its slowest stage. All stages
update together, when each replica of each stage has had its share of the batches: after the least common
multiple of the numbers of replicas, or a multiple of that (``--accumulate``).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from math import inf, lcm

from pipelocal.errors import UserError

AUTO = "auto"
"""Value that requests :func:`choose_replicas` instead of given numbers."""

AS_GOOD = 1.02
"""Factor of the best time per batch up to which a pipeline with more frequent updates is preferred."""

FEW_BATCHES = 64
"""Number of batches per update that is always allowed, however few the ranks."""

MOST_REPLICAS = 4096
"""Most replicas of one stage."""


def batches_an_update(replicas: Sequence[int]) -> int:
    """Return the fewest batches that all stages' replicas can share equally."""
    return lcm(*replicas)


def choose_replicas(
    seconds: Sequence[float], ranks: int, *, most_batches: int | None = None
) -> list[int]:
    """Choose the replicas that make the slowest stage, counting its replicas, fastest.

    Among all choices whose slowest stage is within 2 % of the fastest possible, it takes those with the
    fewest batches per update, and among these the one with the fewest ranks. Without a bound on the batches
    per update, many stages of unequal cost would get numbers such as 7, 11 and 13, for a few percent more
    speed but so few updates that nothing is learned.

    With U batches per update, all numbers of replicas are divisors of U. So each U is considered separately:
    the fewest ranks for a given pace are found stage by stage, and the best pace by repeatedly giving the
    slowest stage its next divisor while there are ranks left. (Any faster choice needs at least as many for
    that stage, so this is optimal.)

    Args:
        seconds: seconds per batch of each stage, without replicas.
        ranks: number of ranks; some may be left over.
        most_batches: most batches per update; by default the number of ranks, which plain data
            parallelism over them would have, or 64 if that is more. The running time of this function
            is proportional to it.

    Returns:
        The number of replicas of each stage, at least 1; their sum is at most ``ranks``.

    Raises:
        UserError: there are fewer ranks than stages.
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
        # Most cannot match the best so far, which is faster to check than their own best.
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
    """Return the least divisors that keep every stage within ``pace`` seconds; None if too many."""
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
    """Return the seconds of the slowest stage, counting replicas, for the best of these divisors."""
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
    """Parse replicas from text such as ``2`` (for every stage), ``1,2,1`` (one for each) or ``auto``.

    Args:
        option: where the text comes from, for the error.
        text: the given text.
        stages: number of stages; None if not known yet: then a single number is not repeated, and
            any count of numbers is accepted.

    Returns:
        The number of replicas of each stage, or None for ``auto``.

    Raises:
        UserError: they are not integers from 1 to the maximum, or neither one number nor one per stage.
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
    """Return the combined speed of each stage's devices: replicas count as one faster device.

    Args:
        speeds: relative speed of one device of each stage; None if they are equal.
        replicas: number of replicas of each stage; None if they are chosen after the cut.
        stages: number of stages.

    Returns:
        The combined speeds; None if they are equal.
    """
    if replicas is None or len(set(replicas)) == 1:
        return None if speeds is None else list(speeds)
    return [speed * r for speed, r in zip(speeds or [1.0] * stages, replicas, strict=True)]


def replicas_text(replicas: Sequence[int]) -> str:
    """Format replicas for :func:`parse_replicas`: one number if all are equal, else one per stage."""
    different = len(set(replicas)) > 1
    return ",".join(map(str, replicas if different else replicas[:1]))
