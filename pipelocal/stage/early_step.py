"""``--step-early``: each parameter is updated as soon as its gradient is there, which is then let go.

So a stage's gradients need not all live at once. The optimizer stays one, and with it its state dict:
its step passes over parameters without a gradient, and here one at a time has one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class EarlyStep:
    """Steps an optimizer during backward passes, while it is switched on.

    Args:
        optimizer: over the parameters; elementwise, so that a parameter alone is updated as among others.
        parameters: those that are trained.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]
    ) -> None:
        self.on = False
        """Whether the next backward pass that reaches a parameter is the only one of the batch."""
        self._optimizer = optimizer
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._step)  # type: ignore[no-untyped-call]

    def _step(self, parameter: Tensor) -> None:
        if self.on:
            self._optimizer.step()
            parameter.grad = None
