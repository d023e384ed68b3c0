"""Analyses a trace: who computes, who waits, and what the bottleneck is.

::

    stage 1  FFBBBB|FFBBBB|FFBBBB|..wait for room..|FFBBBB
    stage 2         FFFFBBBBBBBB|FFFFBBBBBBBB|FFFFBBBBBBBB     <- never waits: the bottleneck
    stage 3                      FFBB......FFBB......FFBB
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelocal.errors import UserError
from pipelocal.telemetry.trace import read_events

COMPUTING = ("forward", "head", "backward", "reconcile", "step")
WAITING = ("receive", "send", "average")
SATURATED = 0.8
"""Busy share of the time above which a rank or an edge counts as a bottleneck."""

Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """How a stage spends its time, averaged over training batches."""

    stage: int
    rank: int
    ms: dict[str, float]
    """Milliseconds per batch by action; those of :data:`WAITING` are waits."""

    @property
    def computing_ms(self) -> float:
        """Milliseconds per batch that the stage computes."""
        return sum(self.ms[name] for name in COMPUTING)

    def share(self, name: str) -> float:
        """Return an action's share of the stage's time, 0 to 1."""
        total = sum(self.ms.values())
        return self.ms[name] / total if total else 0.0


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The timing of training batches according to a trace."""

    stages: list[StageTimes]
    edges_ms: dict[str, float]
    """Milliseconds per batch that tensors are in transit, by edge between ranks (``1 -> 2``)."""
    period_ms: float
    """Milliseconds from one training batch to the next, at the end of the last stage; without the time of
    evaluations and snapshots."""
    events: list[Event]

    @classmethod
    def of(cls, folder: Path) -> Timeline:
        """Read the timeline of a finished run.

        Raises:
            UserError: there is no trace, or no training batch in it.
        """
        events = read_events(folder)
        own = [event for event in events if event["cat"] == "stage"]
        batches = {e["args"]["batch"] for e in own if e["name"] == "forward"}
        if len(batches) < 2:
            raise UserError(f"the trace in {folder} has no two training batches: train for longer")
        own = [e for e in own if e["args"]["batch"] in batches and e["name"] != "evaluate"]
        stages = _stage_times(own, len(batches))
        last = [e for e in own if e["tid"] == own[-1]["tid"] and e["pid"] == own[-1]["pid"]]
        return cls(
            stages=stages,
            edges_ms=_edge_times(events, batches),
            period_ms=_period_ms(last),
            events=events,
        )

    def verdict(self) -> str:
        """Say what the bottleneck is, and what to do about it."""
        ranks: dict[int, float] = defaultdict(float)
        for stage in self.stages:
            ranks[stage.rank] += stage.computing_ms
        waited = self.stages[0].ms["receive"] / self.period_ms
        loading = (
            f"loading the data is the bottleneck: stage 1 waits for it {waited:.0%} of the time: load them "
            f"in more processes (--workers N, workers=N in Python), or make a sample cheaper"
        )
        if len(ranks) == 1:
            if waited > 1 - SATURATED:
                return loading
            longest = max(self.stages, key=lambda stage: stage.computing_ms)
            return (
                f"one rank runs all stages in turn, {self.period_ms:.1f} ms a batch, and stage "
                f"{longest.stage} is the longest ({longest.computing_ms:.1f} ms): start more ranks with "
                f"torchrun to run them at once"
            )
        slowest = max(ranks, key=lambda rank: ranks[rank])
        edge = max(self.edges_ms, key=lambda name: self.edges_ms[name])
        if ranks[slowest] < SATURATED * self.period_ms:
            if self.edges_ms[edge] >= SATURATED * self.period_ms:
                return (
                    f"edge {edge} is the bottleneck: its tensors are under way for "
                    f"{self.edges_ms[edge]:.1f} of {self.period_ms:.1f} ms a batch: send fewer bytes "
                    f"(--wire bf16 or int8), or cut where the output is smaller (pipelocal plan)"
                )
            if waited > 1 - SATURATED:
                return loading
        rest = [time for rank, time in ranks.items() if rank != slowest]
        names = [f"stage {s.stage}" for s in self.stages if s.rank == slowest]
        said = f"rank {slowest} ({', '.join(names)})"
        if ranks[slowest] <= 1.1 * min(rest):
            return (
                f"the ranks are balanced within 10 %: {said} computes {ranks[slowest]:.1f} ms of "
                f"{self.period_ms:.1f} ms a batch"
            )
        less = f"the other {rest[0]:.1f}"
        if len(rest) > 1:
            less = f"the others {min(rest):.1f} to {max(rest):.1f}"
        return (
            f"{said} is the bottleneck: it computes {ranks[slowest]:.1f} ms a batch, {less}: move "
            f"units away from it (--balance time measures where to cut), or give it a faster device or "
            f"another rank (--replicas)"
        )


def _stage_times(events: Iterable[Event], batches: int) -> list[StageTimes]:
    ms: dict[tuple[int, int], dict[str, float]] = defaultdict(
        lambda: dict.fromkeys((*COMPUTING, *WAITING), 0.0)
    )
    for event in events:
        stage = int(event["args"]["lane"].removeprefix("stage "))
        ms[stage, event["pid"]][event["name"]] += event["dur"] / 1000 / batches
    return [StageTimes(stage=stage, rank=rank, ms=ms[stage, rank]) for stage, rank in sorted(ms)]


def _period_ms(events: Sequence[Event]) -> float:
    """Return the mean time from batch to batch in one lane, where they follow one another.

    What lies between, such as an evaluation, has numbers of its own in the stream; of several replicas each
    has every so many-th batch.
    """
    ended: dict[int, float] = {}
    for event in events:
        batch, end = event["args"]["batch"], float(event["ts"] + event["dur"])
        ended[batch] = max(end, ended.get(batch, end))
    numbers = sorted(ended)
    if len(numbers) < 2:  # of replicas, each had one
        return sum(float(event["dur"]) for event in events) / 1000
    stride = min(b - a for a, b in pairwise(numbers))
    periods = [ended[b] - ended[a] for a, b in pairwise(numbers) if b - a == stride]
    return sum(periods) / len(periods) / stride / 1000


def _edge_times(events: Iterable[Event], batches: set[int]) -> dict[str, float]:
    """Return the time from both ends being ready until arrival, by edge; overlaps count once."""
    begun: dict[tuple[str, int], float] = {}
    arrived: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        lane, batch = event["args"]["lane"], event["args"]["batch"]
        if event["name"] == "send" and event["cat"] == "transfer":
            begun[lane, batch] = event["ts"]
        elif event["name"] == "recv" and batch in batches:
            arrived[lane.rpartition(" ")[0]].append(event)
    times = {}
    for edge, received in arrived.items():
        spans = []
        for event in received:
            key = event["args"]["lane"], event["args"]["batch"]
            start = max(event["ts"], begun.get(key, event["ts"]))
            spans.append((start, max(start, event["ts"] + event["dur"])))
        times[edge] = _covered(spans) / 1000 / len(batches)
    return times


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total
