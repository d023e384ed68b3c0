"""Optimizers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import nn

from pipelocal.registry import Registry


class OptimizerBuilder(Protocol):
    """Makes an optimizer."""

    def __call__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float,
        /,
        *,
        fused: bool = False,
    ) -> torch.optim.Optimizer:
        """Over some parameters, all on one device; fused: by one kernel for all that a step does."""


OPTIMIZERS: Registry[OptimizerBuilder] = Registry("optimizer")

Schedule = Callable[[float], float]
"""Maps the finished part of the training, 0 to 1, to a factor of the learning rate."""

SCHEDULES: Registry[Schedule] = Registry("schedule")


@OPTIMIZERS.register("sgd")
def _sgd(
    parameters: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float,
    momentum: float,
    *,
    fused: bool = False,
) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused or None
    )


@OPTIMIZERS.register("adamw")
def _adamw(
    parameters: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float,
    momentum: float,
    *,
    fused: bool = False,
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters,
        lr=lr,
        betas=(momentum, 0.999),
        weight_decay=weight_decay,
        fused=fused or None,
    )


@SCHEDULES.register("constant")
def _constant(done: float) -> float:  # noqa: ARG001
    return 1.0


@SCHEDULES.register("cosine")
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
