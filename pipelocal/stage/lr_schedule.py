"""Learning-rate schedules by name: a factor of the peak rate, from the first step to the last."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pipelocal.registry import Registry

Schedule = Callable[[float], float]
"""Maps the completed share of the training, 0 to 1, to a factor of the learning rate."""

LR_SCHEDULES: Registry[Callable[..., Any]] = Registry("schedule", takes=None)
"""Each is a :data:`Schedule`, or is called with an optimizer and the total number of updates and returns a
scheduler that is stepped after each update."""


@LR_SCHEDULES.register("constant")
def _constant(done: float) -> float:  # noqa: ARG001
    return 1.0


@LR_SCHEDULES.register("cosine")
def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


class BatchLR(LambdaLR):
    """A learning-rate schedule per batch, regardless of how many batches make an update."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the saved number of batches, with this optimizer's own learning rates."""
        base = self.base_lrs
        super().load_state_dict(state_dict)
        self.base_lrs = base
        groups = self.optimizer.param_groups
        for group, lr, factor in zip(groups, base, self.lr_lambdas, strict=True):
            group["lr"] = lr * factor(self.last_epoch)


SCHEDULED = frozenset(
    ["lr", "initial_lr", "max_lr", "min_lr", "momentum", "betas", "base_momentum", "max_momentum"]
)
"""What schedules set in an optimizer's groups."""


def go_to(scheduler: LRScheduler, steps: int) -> None:
    """Take a schedule that has just been made to where so many steps would have brought it."""
    if isinstance(scheduler, BatchLR):  # whose rates are known without the way there
        there = {"last_epoch": steps, "_step_count": steps + 1}
        scheduler.load_state_dict(scheduler.state_dict() | there)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it belongs to an optimizer that has not stepped yet
        for _ in range(steps):
            scheduler.step()


def learning_rate_factor(
    schedule: Schedule, *, total_steps: int, warmup_steps: int
) -> Callable[[int], float]:
    """Return the factor of the learning rate as a function of the step, for ``LambdaLR``.

    The factor rises linearly over ``warmup_steps``, then follows ``schedule`` to the end.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return schedule(min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    return factor


def scheduled(
    optimizer: torch.optim.Optimizer, total_steps: int, *, factor: Schedule, warmup_steps: int = 0
) -> BatchLR:
    """Make a schedule of an optimizer's learning rates over the given number of batches."""
    rises = learning_rate_factor(factor, total_steps=total_steps, warmup_steps=warmup_steps)
    return BatchLR(optimizer, rises)
