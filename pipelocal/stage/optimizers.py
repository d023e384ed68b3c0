"""Optimizers by name."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from pipelocal.registry import Registry

NamedParameters = Iterable[tuple[str, nn.Parameter]]

OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry(
    "optimizer", takes="named, lr=, weight_decay=, momentum=, fused="
)
"""Each is called with ``(name, parameter)`` pairs, and with the options that it has a parameter for; a
fused optimizer does a whole step in one kernel."""


@OPTIMIZERS.register("sgd")
def _sgd(
    named: NamedParameters, *, lr: float, weight_decay: float, momentum: float, fused: bool = False
) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        _parameters(named),
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        fused=fused or None,
    )


@OPTIMIZERS.register("adamw")
def _adamw(
    named: NamedParameters, *, lr: float, weight_decay: float, momentum: float, fused: bool = False
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        _parameters(named),
        lr=lr,
        betas=(momentum, 0.999),
        weight_decay=weight_decay,
        fused=fused or None,
    )


def _parameters(named: NamedParameters) -> list[Any]:
    return [parameter for _, parameter in named]
