"""Which rank holds which replica of which stage, so that little crosses from node to node.

What holds stages is called a block here: a rank's stages, of which each replica is a rank. The places to
fill are the replicas of all blocks in order, ``(0, 0), (0, 1), ..., (1, 0), ...``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, lcm

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_SEARCHED = 256
"""Ranks up to which swaps are tried, which takes less than a second; beyond, regular orders have to do."""

NOTHING = 1e-9
"""Share of all traffic below which a difference is one of rounding."""

WHOLE = 2.0**40
"""All traffic, in the whole numbers that the search adds up; far below 2**53, so every sum is exact."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What is sent for a batch, in bytes."""

    edge_bytes: tuple[float, ...]
    """From each block but the last to the next one, by all replicas together: a batch goes from one of
    them to one of the next block's."""
    gradient_bytes: tuple[float, ...]
    """Between the replicas of each block, over all links of the ring of their all-reduce:
    ``2 * (r - 1) * parameter bytes / batches an update``. A link carries one r-th of it."""


def crossing_bytes(
    ranks: Sequence[Sequence[int]], node_of: Sequence[int], traffic: Traffic
) -> float:
    """Bytes a batch that go from a node to another one.

    Batch t goes from replica ``t mod r`` of a block to replica ``t mod s`` of the next one. So i and j
    meet if they leave the same remainder by ``gcd(r, s)``, and each such pair has one ``lcm(r, s)``-th of
    the batches. The ring of an all-reduce goes through the ranks of a node before it leaves it, as it does
    where a node's ranks are numbered in a row: of a block on n nodes it has n links between nodes, or
    none on a single one.

    Args:
        ranks: of each replica of each block.
        node_of: for every rank the number of its node.
        traffic: what is sent.
    """
    homes = [np.array([node_of[rank] for rank in block]) for block in ranks]
    total = 0.0
    for (here, there), carried in zip(pairwise(homes), traffic.edge_bytes, strict=True):
        apart = here[:, None] != there[None, :]
        pairs = int((apart & _meet(len(here), len(there))).sum())
        total += carried * pairs / lcm(len(here), len(there))
    for home, moved in zip(homes, traffic.gradient_bytes, strict=True):
        nodes = len(set(home.tolist()))
        total += moved / len(home) * (nodes if nodes > 1 else 0)
    return total


def arrange(replicas: Sequence[int], node_of: Sequence[int], traffic: Traffic) -> list[list[int]]:
    """The rank of each replica of each block, such that few bytes cross between nodes.

    Tried are stage by stage, the orders of :func:`_orders` and whole blocks, each as it is and after
    swaps of two replicas: each time the swap that saves most, until none helps. The best result counts,
    and of equally good ones the plainest: stage by stage, then the others, then what swaps made of them.
    It is never worse than stage by stage. The least possible is not promised (to split a graph into parts
    of given sizes is hard), though the tests' random cases of up to eight ranks have no better one. Every
    rank that computes it finds the same.

    Args:
        replicas: of each block.
        node_of: for every rank the number of its node; as many as replicas in all.
        traffic: what is sent.

    Returns:
        for each block the ranks of its replicas. Replica 0 of block 0 is rank 0, which writes the run
        folder and shows the progress. Within a node, ranks are given block by block.
    """
    assert len(node_of) == sum(replicas), "every rank gets a replica"
    nodes = list(dict.fromkeys(node_of))  # that of rank 0 first
    capacity = Counter(node_of)
    plain = np.array([nodes.index(node) for node in node_of])
    filled = np.repeat(np.arange(len(nodes)), [capacity[node] for node in nodes])
    candidates = [plain]
    for order in _orders(replicas):
        homes = np.empty_like(filled)
        homes[order] = filled
        candidates.append(homes)
    candidates.append(_whole_blocks(replicas, [capacity[node] for node in nodes], traffic))
    if len(nodes) == 1:
        candidates = [plain]
    elif sum(replicas) <= MOST_SEARCHED:
        swaps = _Swaps(replicas, traffic, [capacity[node] for node in nodes])
        candidates += [swaps.improved(homes) for homes in candidates]
    results = [
        _ranks(homes, replicas, [nodes.index(node) for node in node_of]) for homes in candidates
    ]
    bytes_of = [crossing_bytes(ranks, node_of, traffic) for ranks in results]
    as_good = min(bytes_of) + NOTHING * _all_bytes(traffic)
    return next(ranks for ranks, least in zip(results, bytes_of, strict=True) if least <= as_good)


def _orders(replicas: Sequence[int]) -> list[list[int]]:
    """Orders in which the places, but for stage by stage, can be dealt to the nodes; (0, 0) is first.

    - Pipeline by pipeline: replicas with the same number modulo the greatest common divisor of all never
      send to others. With equally many of each block, that is replica i of all blocks, then i + 1.
    - Interleaved: along the blocks, each with replicas as its share of the way, so that a block with
      twice as many has two where another one has one.
    - The same within each of those pipelines.
    """
    common = gcd(*replicas)
    places = [(block, i, r) for block, r in enumerate(replicas) for i in range(r)]

    def pipeline(place: tuple[int, int, int]) -> tuple[float, ...]:
        block, i, _ = place
        return (i % common, block, i)

    def interleaved(place: tuple[int, int, int]) -> tuple[float, ...]:
        block, i, r = place
        return (i / r, block)

    def both(place: tuple[int, int, int]) -> tuple[float, ...]:
        block, i, r = place
        return (i % common, (i // common) / (r // common), block)

    keys = (pipeline, interleaved, both)
    return [sorted(range(len(places)), key=lambda at: key(places[at])) for key in keys]


def _whole_blocks(replicas: Sequence[int], capacity: Sequence[int], traffic: Traffic) -> Ints:
    """Nodes for the places such that blocks stay whole, those first whose ring would carry most.

    Each goes to the fullest node that has room for it; where none has, to the emptiest ones.
    """
    room = list(capacity)
    starts = np.cumsum([0, *replicas])
    homes = np.zeros(sum(replicas), dtype=np.int64)
    room[0] -= 1  # place 0 is on node 0 anyhow

    def link(block: int) -> float:
        return traffic.gradient_bytes[block] / replicas[block]

    for block in sorted(range(len(replicas)), key=lambda block: (-link(block), block)):
        waiting = [int(place) for place in range(starts[block], starts[block + 1]) if place]
        whole = [node for node, free in enumerate(room) if free >= len(waiting)]
        if block == 0 and room[0] >= len(waiting):
            whole = [0]
        first = min(whole, key=lambda node: room[node]) if whole else 0
        order = [first] if whole else sorted(range(len(room)), key=lambda node: -room[node])
        for node in order:
            while waiting and room[node]:
                homes[waiting.pop(0)] = node
                room[node] -= 1
    return homes


def _ranks(homes: Ints, replicas: Sequence[int], node_of: Sequence[int]) -> list[list[int]]:
    """Ranks for places on nodes: those of a node in ascending order."""
    free: dict[int, list[int]] = {}
    for rank, node in enumerate(node_of):
        free.setdefault(node, []).append(rank)
    waiting = {node: iter(ranks) for node, ranks in free.items()}
    flat = iter([next(waiting[int(home)]) for home in homes])
    return [[next(flat) for _ in range(r)] for r in replicas]


def _meet(here: int, there: int) -> npt.NDArray[np.bool_]:
    """Which replicas of a block ever send to which of the next one, ``[here, there]``."""
    difference = np.arange(here)[:, None] - np.arange(there)[None, :]
    met: npt.NDArray[np.bool_] = difference % gcd(here, there) == 0
    return met


def _all_bytes(traffic: Traffic) -> float:
    return sum(traffic.edge_bytes) + sum(traffic.gradient_bytes)


class _Swaps:
    """Looks for swaps of two places' nodes after which less crosses.

    Args:
        replicas: of each block.
        traffic: what is sent.
        capacity: ranks of each node; node 0 is that of rank 0.
    """

    def __init__(self, replicas: Sequence[int], traffic: Traffic, capacity: Sequence[int]) -> None:
        places = sum(replicas)
        starts = np.cumsum([0, *replicas])
        self._nodes = len(capacity)
        self._blocks = len(replicas)
        self._block = np.repeat(np.arange(self._blocks), replicas)
        self._same_block = self._block[:, None] == self._block[None, :]
        # In whole numbers, sums are the same in whatever order a machine forms them.
        scale = WHOLE / max(_all_bytes(traffic), 1.0)
        link = scale * np.array(traffic.gradient_bytes) / np.array(replicas)
        self._link: Floats = link.round()
        self._edge = np.zeros((places, places))
        for k, ((r, s), carried) in enumerate(
            zip(pairwise(replicas), traffic.edge_bytes, strict=True)
        ):
            here, there = slice(starts[k], starts[k + 1]), slice(starts[k + 1], starts[k + 2])
            self._edge[here, there] = _meet(r, s) * round(scale * carried / lcm(r, s))
        self._edge += self._edge.T
        # Place 0 belongs on node 0. It may move to nodes as large, whose numbers can be exchanged.
        self._fixed = np.array(capacity) != capacity[0]

    def improved(self, homes: Ints) -> Ints:
        """After the best swap, and again, until none helps or there were four for each place."""
        homes = homes.copy()
        for _ in range(4 * len(homes)):
            gain = self._gains(homes)
            a, b = divmod(int(gain.argmax()), len(homes))
            if gain[a, b] <= NOTHING * WHOLE:
                break
            homes[[a, b]] = homes[[b, a]]
        if homes[0]:
            renamed = np.arange(self._nodes)
            renamed[[0, homes[0]]] = homes[0], 0
            homes = renamed[homes]
        return homes

    def _gains(self, homes: Ints) -> Floats:
        """What would cross no more if the places a and b changed nodes, ``[a, b]``; all is ``WHOLE``."""
        places = np.arange(len(homes))
        to_node = self._edge @ (homes[:, None] == np.arange(self._nodes)[None, :])
        # First what it would be if one place moved to a node alone, [place, node].
        edge_gain = to_node - to_node[places, homes][:, None]
        held = np.zeros((self._blocks, self._nodes), dtype=np.int64)
        np.add.at(held, (self._block, homes), 1)
        spread = (held > 0).sum(1)[self._block]
        left = held[self._block, homes] == 1
        after = spread[:, None] - left[:, None] + (held[self._block] == 0)
        ring_gain = self._link[self._block][:, None] * (_borders(spread)[:, None] - _borders(after))
        edge, ring = edge_gain[:, homes], ring_gain[:, homes]
        # What a and b send each other crosses before and after; each alone would have saved it.
        gain: Floats = edge + edge.T - 2 * self._edge
        gain += np.where(self._same_block, 0.0, ring + ring.T)
        gain[homes[:, None] == homes[None, :]] = 0.0
        fixed = self._fixed[homes]
        gain[0, fixed] = gain[fixed, 0] = 0.0
        return gain


def _borders(spread: Ints) -> Ints:
    """Links between nodes of a ring over so many nodes."""
    links: Ints = np.where(spread > 1, spread, 0)
    return links
