"""A stage's parameters as one module, whose backward pass adds nothing to their gradients.

DistributedDataParallel and fully_shard average gradients in the course of a backward pass. A stage's
gradients are formed by several passes (head and body, reconciliation, further batches of an update), or by
formulas, and a replica may have had no batch at all in the rest of an epoch. So the passes of a stage go on
as if it were alone, and a last one, of this module, hands over what they gathered::

    batch 0   head | body |
    batch 2   head | body | reconciliation |  carrier: buckets, communication hooks, all-reduce

What is lost is that averaging could begin while the body is still in its backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class Carrier(nn.Module):
    """Body and head.

    Args:
        body: of a stage.
        head: of the same.
        objective: of the same, where it has parameters.
    """

    def __init__(
        self, body: nn.Module, head: nn.Module, objective: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.objective = objective

    def forward(self) -> Tensor:
        """A scalar that is zero; its gradients are zeros for all parameters."""
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
