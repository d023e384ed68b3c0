"""Time of a training step over links of different bandwidth and latency."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.communication import methods
from benchmarks.communication.methods import Method, Work
from benchmarks.communication.network import Shape, two_hosts

OWN = (
    methods.own("greedy"),
    methods.own("sgr"),
    methods.own("sgr", wire="int8"),
)
PEERS = tuple(methods.one_f_one_b(methods.RANKS * factor) for factor in (1, 4))
METHODS = (*OWN, *PEERS)
QUICK = (OWN[1], PEERS[0])

UNSHAPED = Shape()
SLOWEST = Shape(bits_per_s=1e8, one_way_s=0.05)
GRID = (
    UNSHAPED,
    Shape(one_way_s=0.05),
    Shape(bits_per_s=1e8),
    SLOWEST,
)
FEW = (UNSHAPED, SLOWEST)

STEPS = {"own": 48, "peer": 12}
"""Training steps of a run; the peers' median needs fewer than a median of records."""

Row = dict[str, Any]
Seconds = dict[tuple[Shape, str], list[float]]


def measure(
    work: Work,
    shapes: Sequence[Shape],
    chosen: Sequence[Method],
    rounds: int,
    *,
    text: str,
) -> Iterator[Row | str]:
    """Lines of progress, and at the end a row for every shape and method.

    Args:
        work: what is trained.
        shapes: of the link; the first one unshaped.
        chosen: the methods.
        rounds: how often all shapes and methods take turns.
        text: file for the data set ``text``.
    """
    seconds: Seconds = {}
    for round_ in range(rounds):
        for shape in shapes:
            for method in chosen:
                taken = _seconds(work, shape, method, text)
                seconds.setdefault((shape, method.name), []).append(taken)
            yield f"{work.model}, {describe(shape)}: round {round_ + 1} of {rounds}"
    for shape in shapes:
        for method in chosen:
            yield _row(work, shape, method, seconds, chosen)


def _seconds(work: Work, shape: Shape, method: Method, text: str) -> float:
    with two_hosts(shape) as hosts:
        if method.micro_batches is None:
            return methods.seconds_own(hosts, work, method, steps=STEPS["own"], text=text)
        return methods.seconds_peer(hosts, work, method, steps=STEPS["peer"])


def _row(
    work: Work, shape: Shape, method: Method, seconds: Seconds, chosen: Sequence[Method]
) -> Row:
    own = seconds[shape, method.name]
    slowdowns = _ratios(own, seconds[UNSHAPED, method.name])
    row: Row = {
        "part": "rates",
        "model": work.model,
        "batch_size": work.batch_size,
        "bits_per_s": shape.bits_per_s,
        "one_way_s": shape.one_way_s,
        "method": method.name,
        "slowdown": statistics.median(slowdowns),
        "slowdown_each_round": slowdowns,
    }
    # A latency over a time of computing is a ratio too, and says what the slowdown stands for.
    row["one_way_over_unshaped_step"] = shape.one_way_s / statistics.median(
        seconds[UNSHAPED, method.name]
    )
    for other in chosen:
        if other.micro_batches is not None:
            continue
        ratios = _ratios(own, seconds[shape, other.name])
        row[f"time_over_{other.name}"] = statistics.median(ratios)
        row[f"time_over_{other.name}_each_round"] = ratios
    for other in chosen:
        if other.micro_batches is None:
            continue
        theirs = _ratios(seconds[shape, other.name], seconds[UNSHAPED, other.name])
        ratios = _ratios(slowdowns, theirs)
        row[f"slowdown_over_{other.name}"] = statistics.median(ratios)
        row[f"slowdown_over_{other.name}_each_round"] = ratios
    return row


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def describe(shape: Shape) -> str:
    """Such as ``100 Mbit/s, 50 ms``."""
    bandwidth = "unlimited" if shape.bits_per_s is None else f"{shape.bits_per_s / 1e6:g} Mbit/s"
    return f"{bandwidth}, {1000 * shape.one_way_s:g} ms"
