"""What a smaller and a larger budget of compute for heads would do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipelocal.run.blueprint import Blueprint


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The plan for another ``--head-budget``."""

    budget: float
    larger: bool
    """Whether it is larger than the one that was asked for."""
    cut: str
    """The cut, as ``--cut`` takes it: the planner's own, or the one that was given."""
    heads: list[str]
    """The head of every stage but the last, as ``--head`` takes it."""
    seconds: float
    """Of the slowest stage for one training batch, counting replicas."""


def neighbours(blueprint: Blueprint) -> Iterator[tuple[bool, float]]:
    """Yield the next smaller and the next larger budget that give a stage of this cut another head.

    Args:
        blueprint: the model, cut; other heads than ``auto`` have no budget.

    Yields:
        Whether it is larger, and the budget, to two digits.
    """
    budget = blueprint.heads.budget
    if budget is None:
        return
    below, above = [], []
    for cut in blueprint.cuts[:-1]:
        behind = blueprint.heads.behind(cut.stop)
        chosen = behind.chosen(budget)
        if behind.chosen(chosen.least_budget * (1 - 1e-9)).name != chosen.name:
            below.append(chosen.least_budget)
        for choice in behind.working():  # the preferred first: those before the chosen are too dear
            if choice.name == chosen.name:
                break
            above.append(choice.least_budget)
    smaller = _two_digits(max(below, default=0.0), up=False)
    if 0 < smaller < budget:
        yield False, smaller
    if above:
        yield True, _two_digits(min(above), up=True)


def _two_digits(number: float, *, up: bool) -> float:
    """Round to two digits, to less than the number or to at least as much."""
    if number <= 0:
        return 0.0
    digits = 1 - math.floor(math.log10(number))
    scaled = number * 10.0**digits
    whole = math.ceil(scaled) if up else math.ceil(scaled) - 1
    return round(whole / 10.0**digits, max(digits, 0))
