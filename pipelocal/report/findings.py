"""Says in plain words what a run's record shows that its user would want to know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from statistics import fmean

from pipelocal.report.record import RunRecord
from pipelocal.run.summary import earlier_head, known
from pipelocal.telemetry.formats import format_bytes
from pipelocal.telemetry.timeline import SATURATED

FEW_STEPS = 20
"""Training batches below which nothing is said about time or learning."""
IDLE = 0.5
"""Busy fraction below which a rank waits most of its time."""
RISEN = 1.25
"""Evaluation loss over its least value from which it counts as risen."""
UNEVEN = 2.0
"""Memory of the largest rank over that of the next from which the cut counts as uneven."""
DEAR_HEAD = 0.6
"""Share of a stage's multiply-adds from which its head counts as dear."""

MOST_LISTED = 4
"""Stages or ranks that are named one by one."""


def findings(run: RunRecord) -> list[str]:
    """Return what the record shows, the most important first."""
    return [
        *_ending(run),
        *_heads_that_beat_the_last(run),
        *_learning(run),
        *_time(run),
        *_memory(run),
        *_dear_heads(run),
    ]


def _ending(run: RunRecord) -> Iterator[str]:
    for name, error in run.failures:
        yield f"A rank ended in an error: {error} ({name} in the run folder has the traceback)."
    if len(run.starts) > 1:
        again = ", ".join(f"{step:,}" for step in run.starts[1:])
        yield f"The run was stopped, and went on after batch {again}."
    if run.summary is not None:
        return
    reached = f"{run.steps:,} of {run.total_steps:,}" if run.total_steps else f"{run.steps:,}"
    yield (
        f"This run has not ended: its stages have reported {reached} training batches. What follows is what "
        f"it recorded so far; bytes, memory of processes and the ensemble's last figures come at the end."
    )


def _heads_that_beat_the_last(run: RunRecord) -> Iterator[str]:
    if run.summary is None:
        return
    python = bool(run.options.get("python"))
    line = earlier_head(dict(run.summary), run.path, python=python)
    if line is not None:
        yield f"An earlier head is better than the last one: {line}."


def _learning(run: RunRecord) -> Iterator[str]:
    frozen = {stage.stage for stage in run.stages if stage.final.get("frozen_at") is not None}
    stuck = []
    for stage, points in run.series("train", "loss").items():
        losses = [value for _, value in points]
        if len(losses) < 5 or points[-1][0] < FEW_STEPS or stage in frozen:
            continue
        part = max(1, len(losses) // 5)
        first, last = fmean(losses[:part]), fmean(losses[-part:])
        if last >= first:
            stuck.append(f"from {known(first)} to {known(last)} in stage {stage}")
    if stuck:
        listed = ", ".join(stuck[:MOST_LISTED])
        if len(stuck) > MOST_LISTED:
            listed += f", and did not fall in {len(stuck) - MOST_LISTED} more"
        yield (
            f"Not every stage learns: from the first fifth of the run to the last, the training loss went "
            f"{listed}. Try another --lr, or add --warmup-steps."
        )
    evaluated = run.series("evaluate", "loss").get(run.last_stage, [])
    if len(evaluated) < 2:
        return
    at, least = min(evaluated, key=lambda point: point[1])
    _, last = evaluated[-1]
    if last > RISEN * least > 0:
        yield (
            f"The evaluation loss of the last stage has risen: it was lowest after batch {at:,.0f} "
            f"({known(least)}) and is {known(last)} now. More training does not help it; look whether the "
            f"metric falls as well."
        )


def _time(run: RunRecord) -> Iterator[str]:
    if run.timeline is not None:
        yield f"From the trace: {run.timeline.verdict()}."
        return
    if run.steps < FEW_STEPS:
        return
    busy = busy_ranks(run)
    if len(busy) < run.world_size or not busy:
        return
    said = {rank: f"{share:.0%}" for rank, share in busy.items()}
    most = max(busy, key=lambda rank: busy[rank])
    if len(busy) == 1:
        if busy[most] < SATURATED:
            yield (
                f"The loader is the bottleneck: the stages compute {said[most]} of the time, and one process "
                f"waits for nothing but data. Load them in more processes (--workers N), or make a sample "
                f"cheaper."
            )
        return
    if busy[most] < SATURATED:
        yield (
            f"No rank is busy more than {said[most]} of the time: the data or the links between ranks are "
            f"the bottleneck. Train with --trace, and pipelocal timeline says which."
        )
        return
    idle = [rank for rank in sorted(busy) if busy[rank] < IDLE]
    if idle:
        listed = ", ".join(
            f"rank {rank} ({_held(run, rank)}) is busy {said[rank]}" for rank in idle[:MOST_LISTED]
        )
        if len(idle) > MOST_LISTED:
            listed += f", and {len(idle) - MOST_LISTED} more wait as well"
        yield (
            f"A stage waits most of its time: {listed}, while rank {most} ({_held(run, most)}) sets the pace "
            f"and is busy {said[most]}. Move units away from it (--balance time measures where to cut)."
        )


def _memory(run: RunRecord) -> Iterator[str]:
    held: dict[int, float] = defaultdict(float)
    for stage in run.stages:
        for seat in stage.seats:
            held[seat["rank"]] += seat.get("peak_memory_bytes") or 0
    if len(held) < 2:
        return
    rank, after, *_ = sorted(held, key=lambda rank: -held[rank])
    if held[rank] > UNEVEN * held[after] > 0:
        yield (
            f"Memory is uneven: rank {rank} ({_held(run, rank)}) needs {format_bytes(held[rank])}, no other "
            f"more than {format_bytes(held[after])}. --balance memory cuts so that the largest is smallest."
        )


def _dear_heads(run: RunRecord) -> Iterator[str]:
    shares = {stage.stage: stage.head_share for stage in run.stages[:-1]}
    dear = {stage: share for stage, share in shares.items() if (share or 0) > DEAR_HEAD}
    if not dear:
        return
    if len(dear) > MOST_LISTED:
        listed = f"up to {max(share or 0 for share in dear.values()):.0%} in {len(dear)} stages"
    else:
        listed = ", ".join(f"{share:.0%} in stage {stage}" for stage, share in dear.items())
    yield (
        f"Heads cost more than the stages that they teach: {listed} of the multiply-adds. Fewer stages, a "
        f"smaller --head-budget, or a --cut that gives these stages more units makes it less."
    )


def busy_ranks(run: RunRecord) -> dict[int, float]:
    """Return the share of its time in which each rank computed, 0 to 1, as far as it is known."""
    found: dict[int, float] = defaultdict(float)
    for stage in run.stages:
        for seat in stage.seats:
            found[seat["rank"]] += seat["busy_fraction"]
        if not stage.seats and len(stage.ranks) == 1:  # not ended: a mean over the records so far
            shares = run.series("train", "busy_fraction").get(stage.stage)
            if shares:
                found[stage.ranks[0]] += fmean(share for _, share in shares)
    return {rank: min(1.0, share) for rank, share in found.items()}


def _held(run: RunRecord, rank: int) -> str:
    """Name the stages of a rank."""
    numbers = [str(stage.stage) for stage in run.stages if rank in stage.ranks]
    return f"stage{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
