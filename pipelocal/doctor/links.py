"""Measures the links between neighbouring ranks: latency, bandwidth, and clock offsets."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

PINGS = 20
MESSAGES = 3


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Offset by which a rank's wall clock is ahead of rank 0's, to within half a round trip."""

    rank: int
    ahead_s: float


@dataclass(frozen=True, kw_only=True)
class Link:
    """Measurements of the edge from a rank to the next; its actual speed may be higher."""

    source: int
    one_way_s: float
    """Half of the median round trip of a message of four bytes."""
    bits_per_s: float
    """Bandwidth in bits per second, from the fastest of a few messages."""


def measure_links(size: int) -> list[Link]:
    """Measure the links that this rank sends on: one, or none on the last rank.

    All ranks call this, with a default process group that takes CPU tensors. Every second link is measured
    first, so that no rank is in two measurements at once.

    Args:
        size: bytes of the message for the bandwidth.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    links = []
    for turn in (0, 1):
        for source in range(turn, ranks - 1, 2):
            if rank == source:
                links.append(_measure(source, size))
            elif rank == source + 1:
                _answer(source, size)
    return links


def _measure(source: int, size: int) -> Link:
    word, message = torch.zeros(1), torch.zeros(size, dtype=torch.uint8)
    trips = []
    for _ in range(PINGS):
        trips.append(_seconds_of_round_trip(source + 1, word, word))
    longest = [_seconds_of_round_trip(source + 1, message, word) for _ in range(MESSAGES)]
    return Link(
        source=source,
        one_way_s=statistics.median(trips) / 2,
        bits_per_s=bits_per_s(size, trips, longest),
    )


def bits_per_s(size: int, short_s: list[float], long_s: list[float]) -> float:
    """Estimate the bandwidth from round trips of a short message and of one of ``size`` bytes.

    The reply to a long message is short, and its return time is taken from the fastest short round trip: a
    typical one may have waited for a busy host, and so be slower than a long message that did not.
    """
    seconds = min(long_s) - min(short_s) / 2
    return 8 * size / max(seconds, min(long_s) / 2)


def _answer(source: int, size: int) -> None:
    word, message = torch.zeros(1), torch.zeros(size, dtype=torch.uint8)
    for incoming in [word] * PINGS + [message] * MESSAGES:
        dist.recv(incoming, source)
        dist.send(word, source)


def _seconds_of_round_trip(peer: int, there: torch.Tensor, back: torch.Tensor) -> float:
    started = time.perf_counter()
    dist.send(there, peer)
    dist.recv(back, peer)
    return time.perf_counter() - started


def measure_clock() -> Clock:
    """Measure this rank's clock; all ranks call this, as for :func:`measure_links`."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    now = torch.zeros((), dtype=torch.float64)
    for other in range(1, ranks):
        if rank == 0:
            dist.recv(now, other)
            dist.send(now.fill_(time.time()), other)
        elif rank == other:
            asked = time.time()
            dist.send(now, 0)
            dist.recv(now, 0)
            return Clock(rank=rank, ahead_s=(asked + time.time()) / 2 - now.item())
    return Clock(rank=rank, ahead_s=0.0)
