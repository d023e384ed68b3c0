"""The event model keeps to order, dependencies and one task at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelocal.plan.simulate.events import Task, run


def test_a_chain_over_two_resources_takes_the_sum_and_the_lag() -> None:
    first = Task(resource=0, seconds=2.0, lag_s=0.5)
    second = Task(resource=1, seconds=3.0, after=(first,))
    assert run([first, second], 2) == 5.5
    assert (second.start_s, second.end_s) == (2.5, 5.5)


def test_a_resource_keeps_its_order_even_where_a_later_task_could_start() -> None:
    slow = Task(resource=1, seconds=5.0)
    waits = Task(resource=0, seconds=1.0, after=(slow,))
    later = Task(resource=0, seconds=1.0)
    run([slow, waits, later], 2)
    assert later.start_s == 6.0


def test_tasks_in_a_circle_are_found() -> None:
    one = Task(resource=0, seconds=1.0)
    other = Task(resource=1, seconds=1.0, after=(one,))
    one.after = (other,)
    with pytest.raises(RuntimeError, match="2 tasks wait for each other in a circle"):
        run([one, other], 2)


@st.composite
def task_lists(draw: st.DrawFn) -> tuple[list[Task], int]:
    """Tasks that wait only for earlier ones, so that there is no circle."""
    resources = draw(st.integers(1, 4))
    tasks: list[Task] = []
    for _ in range(draw(st.integers(1, 20))):
        after = draw(st.lists(st.sampled_from(tasks), max_size=3, unique=True)) if tasks else []
        tasks.append(
            Task(
                resource=draw(st.integers(0, resources - 1)),
                seconds=float(draw(st.integers(0, 5))),
                lag_s=float(draw(st.integers(0, 3))),
                after=tuple(after),
            )
        )
    return tasks, resources


@given(task_lists())
def test_what_holds_for_every_list_of_tasks(drawn: tuple[list[Task], int]) -> None:
    tasks, resources = drawn
    end_s = run(tasks, resources)
    assert end_s == max(task.end_s for task in tasks)
    for task in tasks:
        assert task.end_s == task.start_s + task.seconds
        for other in task.after:
            assert task.start_s >= other.end_s + other.lag_s
    for resource in range(resources):
        own = [task for task in tasks if task.resource == resource]
        for before, following in pairwise(own):
            assert following.start_s >= before.end_s
        assert end_s >= sum(task.seconds for task in own)
