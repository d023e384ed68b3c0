"""Synchronises clocks: measures each rank's ``time.perf_counter`` against that of rank 0."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

ROUND_TRIPS = 16


def seconds_behind_rank_0() -> float:
    """Return the seconds to add to this rank's ``time.perf_counter`` to get rank 0's.

    All ranks call this, with a default process group that takes CPU tensors. Each asks rank 0 for the
    time repeatedly; the answer of the fastest round trip is assumed to be from its midpoint (Cristian
    1989), with an error of at most half of that round trip. Clocks that this cannot tell apart count as
    one clock: the ranks of one host read the same, and half a round trip would show a batch that is
    used before it was made.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    time_there = torch.zeros((), dtype=torch.float64)
    fastest, offset = float("inf"), 0.0
    for other in range(1, size):
        for _ in range(ROUND_TRIPS):
            if rank == 0:
                dist.recv(time_there, other)
                dist.send(time_there.fill_(time.perf_counter()), other)
            elif rank == other:
                asked = time.perf_counter()
                dist.send(time_there, 0)
                dist.recv(time_there, 0)
                answered = time.perf_counter()
                if answered - asked < fastest:
                    fastest = answered - asked
                    offset = time_there.item() - (asked + answered) / 2
    return offset if abs(offset) > fastest / 2 else 0.0
