"""Optimizers by name."""

from collections.abc import Iterable
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


OPTIMIZERS: Registry[OptimizerBuilder] = Registry(
    "optimizer", takes="parameters, lr, weight_decay, momentum, fused="
)


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
