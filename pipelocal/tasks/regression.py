"""Regression: numbers for each sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelocal.data.dataset import DataInfo
from pipelocal.errors import DataError, UserError
from pipelocal.tasks.labels import check_classes
from pipelocal.tasks.task import (
    Loss,
    LossFunction,
    Shape,
    Sums,
    Task,
    batch_of,
    check_shape,
    loss_of,
)

LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
}
"""Losses of regression by name; each is the mean over all numbers."""

CONSTANT = 1e-12
"""Share of the targets' squares below which their variance is rounding."""


@dataclass(frozen=True, init=False)
class Regression(Task):
    """Squared error, or another distance, of outputs ``[B, outputs]`` and targets, the same or ``[B]``.

    Reported are ``r2`` (1 is perfect, 0 is what the targets' mean as the answer would have; the mean over
    the outputs), ``mae`` and ``rmse``, over all numbers. An output whose targets are all the same has no
    ``r2``. Maps ``[B, outputs, H, W]`` are taken as well.

    Args:
        outputs: numbers for each sample; by default as many as a target has.
        loss: ``mse``, ``l1`` or ``huber`` (with delta 1), or your own function of outputs and targets of
            equal shapes: a scalar, the mean over the batch, or a :class:`~pipelocal.tasks.task.Loss`.

    Raises:
        UserError: a value is out of range, or there is no such loss.
    """

    outputs: int | None
    loss_function: str | LossFunction

    metrics = ("r2", "mae", "rmse")

    def __init__(self, *, outputs: int | None = None, loss: str | LossFunction = "mse") -> None:
        check_classes(outputs, name="outputs")
        if isinstance(loss, str) and loss not in LOSSES:
            raise UserError(
                f"loss '{loss}': regression knows {', '.join(LOSSES)}, or give a function"
            )
        object.__setattr__(self, "outputs", outputs)
        object.__setattr__(self, "loss_function", loss)

    def with_loss(self, loss: str | LossFunction) -> Regression:
        """Return the same with another loss."""
        return Regression(outputs=self.outputs, loss=loss)

    def check_target(self, target: Tensor, output_shape: Shape) -> None:
        """See :class:`~pipelocal.tasks.task.Task`."""
        if not (target.dim() == 1 and output_shape == (1,)):
            check_shape(target, output_shape, what="regression")
        if not target.is_floating_point():
            raise DataError(_no_numbers(target.dtype))
        if not bool(torch.isfinite(target).all()):
            raise DataError("targets hold NaN or infinity: leave such samples out")

    def output_shape(self, info: DataInfo, made: Shape | None) -> Shape:
        """See :class:`~pipelocal.tasks.task.Task`."""
        del made
        if not info.target_dtype.is_floating_point:
            raise UserError(_no_numbers(info.target_dtype))
        shape = info.target_shape or (1,)
        if self.outputs not in (None, self.width(shape)):
            raise UserError(
                f"outputs={self.outputs}, but the data's targets have the shape "
                f"{batch_of(info.target_shape)}: make both the same, or leave outputs out"
            )
        return shape

    def width(self, output_shape: Shape) -> int:
        """See :class:`~pipelocal.tasks.task.Task`."""
        return output_shape[0] if len(output_shape) == 3 else output_shape[-1]

    def loss(self, output: Tensor, target: Tensor) -> Loss:
        """See :class:`~pipelocal.tasks.task.Task`."""
        target = _like(output, target)
        known = isinstance(self.loss_function, str)
        compute = LOSSES[self.loss_function] if known else self.loss_function  # type: ignore[index]
        assert not isinstance(compute, str)
        return loss_of(compute, output, target, target.numel())

    def sums(self, output: Tensor, target: Tensor) -> Sums:
        """See :class:`~pipelocal.tasks.task.Task`."""
        wanted = _like(output, target).double()
        error = output.double() - wanted
        kept = 1 if output.dim() == 4 else output.dim() - 1
        others = [dim for dim in range(output.dim()) if dim != kept]
        return {
            "numbers": output.numel() // output.shape[kept],
            "targets": wanted.sum(others),
            "squared_targets": wanted.square().sum(others),
            "squared_errors": error.square().sum(others),
            "absolute_errors": error.abs().sum(others),
        }

    def figures(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """See :class:`~pipelocal.tasks.task.Task`."""
        count, squares = sums["numbers"], sums["squared_targets"]
        spread = squares - sums["targets"].square() / count
        varies = spread > CONSTANT * squares
        of_each = 1 - sums["squared_errors"][varies] / spread[varies]
        return {
            "r2": float(of_each.mean()) if len(of_each) else math.nan,
            "mae": float(sums["absolute_errors"].mean() / count),
            "rmse": math.sqrt(float(sums["squared_errors"].mean() / count)),
        }


def _no_numbers(dtype: torch.dtype) -> str:
    return (
        f"targets are {dtype}, but regression wants floating point numbers: have the data give "
        f"target.float(), or choose the task Classification for labels"
    )


def _like(output: Tensor, target: Tensor) -> Tensor:
    """Return the target with dtype and shape of the output; one number a sample may lack its dimension."""
    return target.to(output.dtype).reshape(output.shape)
