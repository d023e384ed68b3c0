"""Finds the best cut of a chain for a given cost model, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Callable

from pipelocal.partition.cut import Cut

Cost = Callable[[int, int, int], float]
"""Cost of units ``start..stop-1`` as stage ``k`` (from 1); ``math.inf`` if that is not allowed."""


def minimise_largest(units: int, stages: int, cost: Cost, *, first: int = 1) -> list[Cut] | None:
    """Find the cut whose most expensive stage costs least; None if no cut is possible.

    ``best[k][j]``, the least possible largest cost when the first j units are cut into k stages, is
    the minimum over i of ``max(best[k-1][i], cost(i, j, k))``. It takes on the
    order of ``stages * units**2`` evaluations of ``cost``.

    Args:
        units: number of units; each stage gets at least one.
        stages: number of stages.
        cost: see :data:`Cost`; need not be additive or monotonic.
        first: fewest units of the first stage.
    """
    best = [0.0] + [math.inf] * units
    choices: list[list[int]] = []
    for stage in range(1, stages + 1):
        following = [math.inf] * (units + 1)
        choice = [-1] * (units + 1)
        for stop in range(max(stage, first), units - (stages - stage) + 1):
            for start in range(stage - 1, stop):
                if best[start] >= following[stop]:
                    continue  # no better, whatever this stage costs
                largest = max(best[start], cost(start, stop, stage))
                if largest < following[stop]:
                    following[stop], choice[stop] = largest, start
        best = following
        choices.append(choice)
    if math.isinf(best[units]):
        return None
    cuts: list[Cut] = []
    stop = units
    for choice in reversed(choices):
        cuts.append(Cut(start=choice[stop], stop=stop))
        stop = choice[stop]
    return cuts[::-1]
