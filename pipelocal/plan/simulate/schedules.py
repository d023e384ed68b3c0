"""The tasks of four pipelines: in what order each rank does what, and what waits for what.

``F`` is a forward pass, ``B`` a backward pass (with ZB-H1 its part for the inputs, and ``W`` its part
for the weights). With three ranks, and batches of three micro-batches::

    pipelocal  F0 B0 F1 B1 F2 B2 F3 B3 ...            whole batches, without an end
                  F0 B0 F1 B1 F2 B2 ...
                     F0 B0 F1 B1 ...

    GPipe      F0 F1 F2             B0 B1 B2          all forward, then all backward
                  F0 F1 F2       B0 B1 B2
                     F0 F1 F2 B0 B1 B2

    1F1B       F0 F1 F2    B0    B1    B2             rank k keeps K - k micro-batches at most (k from 0)
                  F0 F1 B0 F2 B1    B2
                     F0 B0 F1 B1 F2 B2

    ZB-H1      F0 F1 F2    B0 W0 B1 W1 B2 W2          rank k is k micro-batches behind with W
                  F0 F1 B0 F2 B1 W0 B2 W1 W2
                     F0 B0 F1 B1 F2 B2 W0 W1 W2

Sources: GPipe, arXiv 1811.06965; 1F1B with a flush, arXiv 2104.04473; ZB-H1, arXiv 2401.10241.
"""

from __future__ import annotations

from collections.abc import Callable

from pipelocal.plan.simulate.events import Task, run
from pipelocal.plan.simulate.job import Job, Outcome, StageSeconds
from pipelocal.transport.window import ring_slots


def simulate(schedule: str, job: Job) -> Outcome:
    """Run one of :data:`SCHEDULES`.

    Raises:
        KeyError: there is no such schedule.
    """
    ranks = len(job.stages)
    if schedule == "pipelocal":
        tasks, ends, first = _pipelocal(job)
        run(tasks, 3 * ranks)
        half = len(ends) // 2
        seconds = (ends[-1].end_s - ends[half - 1].end_s) / (len(ends) - half)
        busy = sum(task.seconds for task in tasks if task.resource < ranks) / len(ends)
        activations = 1.0
    else:
        # Every batch ends with a flush, so all take the same.
        order = _ORDERS[schedule]
        orders = [order(ranks, rank, job.micro_batches) for rank in range(ranks)]
        tasks, first = _split(job, orders)
        seconds = run(tasks, 3 * ranks)
        busy = sum(task.seconds for task in tasks if task.resource < ranks)
        activations = max(map(_most_kept, orders)) / job.micro_batches
    return Outcome(
        schedule=schedule,
        seconds_per_batch=seconds,
        utilisation=busy / (ranks * seconds) if seconds else 1.0,
        fill_s=first.start_s,
        activations=activations,
    )


# Resources: rank k is k, its link forward K + k, its link backward 2K + k.


def _send(job: Job, after: tuple[Task, ...], rank: int, size: float, *, back: bool = False) -> Task:
    """A transfer of ``size`` bytes from a rank to the next one, or to the one before it."""
    count = len(job.stages)
    return Task(
        resource=(2 * count if back else count) + rank,
        seconds=size / job.link.bytes_per_s,
        lag_s=job.link.latency_s,
        after=after,
    )


def _pipelocal(job: Job) -> tuple[list[Task], list[Task], Task]:
    """All tasks, the last one of every batch, and the first one of the last rank.

    There are more batches than window and ring hold, so that the second half shows the long run.
    """
    window, slots = job.slots, ring_slots(job.slots)
    batches = 4 * (window + slots)
    last = len(job.stages) - 1
    tasks: list[Task] = []
    sent: list[list[Task]] = [[] for _ in job.stages]
    ended: list[list[Task]] = [[] for _ in job.stages]
    first: Task | None = None
    for number in range(batches):
        x: Task | None = None
        delta: Task | None = None
        for rank, stage in enumerate(job.stages):
            forward = Task(resource=rank, seconds=stage.forward, after=(x,) if x else ())
            sends = rank < last
            full = (sent[rank][number - window],) if sends and number >= window else ()
            head = Task(resource=rank, seconds=stage.head, after=full)
            rest = Task(
                resource=rank,
                seconds=_backward(stage, whole=False) + stage.reconcile + stage.update,
                after=(delta,) if delta else (),
            )
            tasks += [forward, head, rest]
            ended[rank].append(rest)
            x = delta = None
            if not sends:
                first = first or forward
                continue
            # Both ends must have room: the window here, the ring of the next rank there.
            free = (ended[rank + 1][number - slots],) if number >= slots else ()
            x = _send(job, (forward, *full, *free), rank, job.x_bytes[rank])
            sent[rank].append(x)
            tasks.append(x)
            if job.delta_bytes[rank]:
                delta = sent[rank][-1] = _send(job, (head,), rank, job.delta_bytes[rank])
                tasks.append(delta)
    assert first is not None
    return tasks, ended[last], first


def _backward(stage: StageSeconds, *, whole: bool) -> float:
    """Of the body, with or without the gradient at the stage's own input."""
    spared = 0.0 if whole else stage.first_input_gradient
    return stage.weight_gradient + stage.input_gradient - spared


Order = list[tuple[str, int]]
"""What a rank does, as ``(kind, micro-batch)``."""


def _gpipe(_ranks: int, _rank: int, count: int) -> Order:
    return [(kind, j) for kind in "FB" for j in range(count)]


def _one_forward_one_backward(ranks: int, rank: int, count: int) -> Order:
    ahead = min(count, ranks - 1 - rank)
    order = [("F", j) for j in range(ahead)]
    for j in range(count):
        if ahead + j < count:
            order.append(("F", ahead + j))
        order.append(("B", j))
    return order


def _zero_bubble(ranks: int, rank: int, count: int) -> Order:
    order: Order = []
    for kind, j in _one_forward_one_backward(ranks, rank, count):
        order.append((kind, j))
        if kind == "B" and j >= rank:
            order.append(("W", j - rank))
    return order + [("W", j) for j in range(max(0, count - rank), count)]


def _most_kept(order: Order) -> int:
    """Micro-batches whose activations are kept at the same time: from F until B, or until W."""
    ends = "W" if any(kind == "W" for kind, _ in order) else "B"
    kept = most = 0
    for kind, _ in order:
        kept += (kind == "F") - (kind == ends)
        most = max(most, kept)
    return most


def _split(job: Job, orders: list[Order]) -> tuple[list[Task], Task]:
    """All tasks of a batch in micro-batches, and the first one of the last rank."""
    count, last, share = job.micro_batches, len(job.stages) - 1, 1.0 / job.micro_batches
    tasks: dict[tuple[str, int, int], Task] = {}
    for rank, (stage, order) in enumerate(zip(job.stages, orders, strict=True)):
        back = (stage.head if rank == last else 0.0) + _backward(stage, whole=rank > 0)
        if ("W", 0) in order:
            back -= stage.weight_gradient
        seconds = {"F": stage.forward, "B": back, "W": stage.weight_gradient}
        for kind, j in order:
            tasks[kind, rank, j] = Task(resource=rank, seconds=seconds[kind] * share)
    sends: list[Task] = []
    for rank in range(last):
        for j in range(count):
            size = job.x_bytes[rank] * share
            x = _send(job, (tasks["F", rank, j],), rank, size)
            tasks["F", rank + 1, j].after = (x,)
            gradient = _send(job, (tasks["B", rank + 1, j],), rank + 1, size, back=True)
            tasks["B", rank, j].after = (gradient,)
            sends += [x, gradient]
    updates = [Task(resource=rank, seconds=stage.update) for rank, stage in enumerate(job.stages)]
    return [*tasks.values(), *sends, *updates], tasks["F", last, 0]


_ORDERS: dict[str, Callable[[int, int, int], Order]] = {
    "GPipe": _gpipe,
    "1F1B": _one_forward_one_backward,
    "ZB-H1": _zero_bubble,
}

SCHEDULES = ("pipelocal", *_ORDERS)
"""What can be simulated."""
