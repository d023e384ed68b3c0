"""A module of a stage's parameters, whose backward pass leaves their gradients unchanged.

DistributedDataParallel and fully_shard average gradients during a backward pass. A stage's gradients come
from several passes (head and body, reconciliation, further batches of an update), or from formulas, and a
replica may have no batch at all at the end of an epoch. So a stage runs its passes as if it were alone, and
a final backward pass of this module hands over the accumulated gradients::

    batch 0   head | body |
    batch 2   head | body | reconciliation |  carrier: buckets, communication hooks, all-reduce

The price is that averaging cannot overlap with the body's own backward pass, but with that of the rank's next
stages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class Carrier(nn.Module):
    """Holds body, head and objective of a stage.

    Args:
        body: the stage's body.
        head: the stage's head.
        objective: the stage's objective, if it has parameters.
    """

    def __init__(
        self, body: nn.Module, head: nn.Module, objective: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.objective = objective

    def forward(self, *_: Tensor) -> Tensor:
        """Return a zero scalar, whose gradients are zeros for all parameters; arguments are not used."""
        out: Tensor = _Zero.apply(*(p for p in self.parameters() if p.requires_grad))  # type: ignore[no-untyped-call]
        return out


class _Zero(Function):
    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.like = [(p.new_zeros(()), p.shape) for p in parameters]
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, ...]:
        return tuple(zero.expand(shape) for zero, shape in ctx.like)
