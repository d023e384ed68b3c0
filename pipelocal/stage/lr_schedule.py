"""Learning-rate schedules by name: a factor of the peak, from the first step to the last."""

import math
from collections.abc import Callable

from pipelocal.registry import Registry

Schedule = Callable[[float], float]
"""Maps the finished part of the training, 0 to 1, to a factor of the learning rate."""

LR_SCHEDULES: Registry[Schedule] = Registry("schedule", takes="done")


@LR_SCHEDULES.register("constant")
def _constant(done: float) -> float:  # noqa: ARG001
    return 1.0


@LR_SCHEDULES.register("cosine")
def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def learning_rate_factor(
    schedule: Schedule, *, total_steps: int, warmup_steps: int
) -> Callable[[int], float]:
    """Factor of the learning rate as a function of the step, for ``LambdaLR``.

    Rises linearly over ``warmup_steps``, then follows ``schedule`` to the end.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return schedule(min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    return factor
