"""The transport penalty (Karkar et al. 2023, arXiv 2309.17357): units shall move what they are given little.

To a stage's loss it adds ``weight * sum over units of mean((output - input)^2)``, over the units of its body
whose input and output have one shape, such as residual blocks. It is a term on inner activations, so it is
part of the body's backward pass, and not of the gradient at the body's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipelocal.models.payload import unpack

FIGURE = "transport"
"""Name of the figure that a stage reports: the penalty without its weight."""


def weight_at(weight: float, stage: int, stages: int) -> float:
    """Return the weight at a stage: half as much in the second half, as in the paper's code."""
    return weight if stage <= stages // 2 else weight / 2


class Displacement:
    """Sums over units how far they move their inputs, by hooks on the units.

    Args:
        units: units that keep the shape of their input.
        weight: weight of the sum at this stage.
    """

    def __init__(self, units: Iterable[nn.Module], weight: float) -> None:
        self.weight = weight
        self._terms: list[Tensor] = []
        self._noting = False
        for unit in units:
            unit.register_forward_hook(self._moved)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what units do in a block; what they did before is forgotten."""
        self._noting, self._terms = True, []
        try:
            yield
        finally:
            self._noting = False

    def taken(self) -> Tensor | None:
        """Return the sum over the noted units, a scalar with its graph, and forget it; None without any."""
        terms, self._terms = self._terms, []
        return torch.stack(terms).sum() if terms else None

    def _moved(self, unit: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        del unit
        if not torch.is_grad_enabled():
            return
        before, after = (unpack(each)[0] for each in (inputs[0], output))
        if before.dtype in (torch.float16, torch.bfloat16):
            before = before.float()
        # Also where it is not noted: a checkpoint that is recomputed must do what it did at first.
        term = (after.to(before.dtype) - before).square().mean()
        if self._noting:
            self._terms.append(term)


class WithPenalty(torch.autograd.Function):
    """Hands an output on; in the backward pass, also differentiates a penalty, with weight 1.

    So objectives deal with one output and one delta, and work as they do without a penalty.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, penalty: Tensor) -> Tensor:
        ctx.one = torch.ones_like(penalty)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        return gradient, ctx.one
