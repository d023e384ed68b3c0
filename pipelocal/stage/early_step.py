"""``--step-early``: updates each parameter as soon as its gradient is ready, then frees the gradient.

So a stage's gradients need not all exist at once. There is still one optimizer with one state dict: its
step skips parameters without a gradient, and here only one parameter at a time has one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class EarlyStep:
    """Steps an optimizer during backward passes, while :attr:`on` is set.

    Args:
        optimizer: over the parameters; elementwise, so that updating them one by one changes nothing.
        parameters: the trained parameters.
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
