"""A model of tasks on resources, each in a given order: knows nothing of stages or schedules."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(eq=False, kw_only=True, slots=True)
class Task:
    """Something that one resource is busy with.

    Args:
        resource: index of the resource.
        seconds: how long it is busy.
        lag_s: how much later the tasks that wait for this one see its end, such as a link's latency.
        after: the tasks that must have ended.
    """

    resource: int
    seconds: float
    lag_s: float = 0.0
    after: tuple[Task, ...] = ()
    start_s: float = field(default=0.0, init=False)
    end_s: float = field(default=0.0, init=False)


def run(tasks: Iterable[Task], resources: int) -> float:
    """Find when every task starts and ends.

    A resource does one task at a time, in the order in which they are given, each as soon as the
    one before it and all that it waits for have ended.

    Args:
        tasks: all tasks; written to.
        resources: number of resources.

    Returns:
        Seconds until the last has ended.

    Raises:
        RuntimeError: tasks that wait for each other in a circle.
    """
    orders: list[deque[Task]] = [deque() for _ in range(resources)]
    dependents: dict[Task, list[Task]] = {}
    missing: dict[Task, int] = {}
    for task in tasks:
        orders[task.resource].append(task)
        missing[task] = len(task.after)
        for other in task.after:
            dependents.setdefault(other, []).append(task)
    free_s = [0.0] * resources
    ready_s = dict.fromkeys(missing, 0.0)
    left = len(missing)
    startable = list(range(resources))  # resources whose next task may have become so
    while startable:
        resource = startable.pop()
        order = orders[resource]
        while order and not missing[order[0]]:
            task = order.popleft()
            task.start_s = max(free_s[resource], ready_s[task])
            task.end_s = free_s[resource] = task.start_s + task.seconds
            left -= 1
            for other in dependents.get(task, ()):
                missing[other] -= 1
                ready_s[other] = max(ready_s[other], task.end_s + task.lag_s)
                if not missing[other] and other.resource != resource:
                    startable.append(other.resource)
    if left:
        raise RuntimeError(f"{left} tasks wait for each other in a circle")
    return max(free_s)
