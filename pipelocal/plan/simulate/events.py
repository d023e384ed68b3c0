"""A model of tasks that run on resources in a given order, independent of stages and schedules."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(eq=False, kw_only=True, slots=True)
class Task:
    """A task that occupies one resource.

    Args:
        resource: index of the resource.
        seconds: how long the resource is busy.
        lag_s: delay until waiting tasks see its end, such as a link's latency.
        after: tasks that must end first.
    """

    resource: int
    seconds: float
    lag_s: float = 0.0
    after: tuple[Task, ...] = ()
    start_s: float = field(default=0.0, init=False)
    end_s: float = field(default=0.0, init=False)


def run(tasks: Iterable[Task], resources: int) -> float:
    """Find when every task starts and ends.

    A resource runs one task at a time, in the given order, each as soon as the previous one and all
    tasks that it waits for have ended.

    Args:
        tasks: all tasks; their times are written to them.
        resources: number of resources.

    Returns:
        Seconds until the last task has ended.

    Raises:
        RuntimeError: tasks wait for each other in a cycle.
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
    startable = list(range(resources))  # resources whose next task may be startable
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
