"""The interface of a task: what a network learns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from pipelocal.data.dataset import DataInfo
from pipelocal.errors import DataError, UserError

Shape = tuple[int, ...]


class Loss(NamedTuple):
    """The loss of a batch; over batches of any size its mean is sum(mean * weight) / sum(weight)."""

    mean: Tensor
    """What is minimised: a scalar, the mean over what counts; 0 and not NaN where nothing counts."""
    weight: Tensor | float
    """How much counts: rows, tokens or pixels, or their weights in all. A scalar or a number."""


LossFunction = Callable[[Tensor, Tensor], "Tensor | Loss"]
"""Called with outputs and targets; returns a scalar, the mean over the batch, or a :class:`Loss`."""

Metric = Callable[[Tensor, Tensor], Tensor]
"""Called with outputs and targets; returns a scalar, the sum over all predictions of the batch."""

Sums = Mapping[str, "Tensor | float"]
"""Tensors on the outputs' device, or numbers that are known without reading it."""


class Task(Protocol):
    """What a network learns: what targets and outputs are, the loss between them, and the metrics.

    A task of your own derives from this class and defines at least the abstract members. A stage calls
    them with outputs ``[B, *output_shape]``, float32, and targets ``[B, ...]`` as the data has them, both on
    the stage's device. None of them may wait for that device.
    """

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures besides the loss; the first decides which snapshot is best."""

    @property
    def higher_is_better(self) -> bool:
        """Whether greater values of the first metric are better."""
        return True

    def check_target(self, target: Tensor, output_shape: Shape) -> None:
        """Check a batch's targets, on the CPU, before they are sent; by default any will do.

        Args:
            target: ``[B, ...]``.
            output_shape: shape of one row of an output.

        Raises:
            DataError: they are of another dtype or shape, or out of range; one line.
        """
        del target, output_shape

    def output_shape(self, info: DataInfo, made: Shape | None) -> Shape:
        """Return the shape of one row of every head's output; by default that of the target.

        Args:
            info: describes the data.
            made: shape of one row of the model's own output; None while there is no model yet.

        Raises:
            UserError: neither task, data nor model say it.
        """
        del made
        return info.target_shape or (1,)

    def width(self, output_shape: Shape) -> int:
        """Return the number of classes, labels or outputs, for models and heads that are built for them."""
        return output_shape[-1]

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Loss:
        """Compute the loss that trains and evaluates a head."""

    @abstractmethod
    def sums(self, output: Tensor, target: Tensor) -> Sums:
        """Return by name what the metrics need of a batch, to be added over batches in float64.

        Each tensor has the same shape in every batch, such as a count, a count for each label, or a confusion
        matrix. It is called once with zeros beforehand, to learn the shapes.
        """

    @abstractmethod
    def figures(self, sums: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Return the :attr:`metrics` by name; NaN where one is not defined.

        Args:
            sums: those of :meth:`sums` over all batches, float64, on the CPU; and ``loss``, the sum of mean
                times weight, and ``weight``.
        """

    def logits(self, output: Tensor) -> Tensor:
        """Return the part of a head's output in training that :meth:`sums` takes; by default all of it."""
        return output

    def votes(self, output: Tensor) -> Tensor:
        """Return what the ensemble averages over all heads, with the shape of the output."""
        return output

    def from_votes(self, mean: Tensor) -> Tensor:
        """Turn the average of the votes into an output again, for :meth:`loss` and :meth:`sums`."""
        return mean


def loss_of(function: LossFunction, output: Tensor, target: Tensor, weight: Tensor | float) -> Loss:
    """Call a loss function; a mean alone gets the weight.

    An error of the function's own says in a note what it was given.

    Raises:
        UserError: it does not return one number.
    """
    try:
        made = function(output, target)
    except Exception as error:
        if not hasattr(error, "__notes__"):
            given = f"outputs {_kind(output)} and targets {_kind(target)}"
            error.add_note(f"the loss was given {given}")
        raise
    loss = made if isinstance(made, Loss) else Loss(made, weight)
    if not isinstance(loss.mean, Tensor) or loss.mean.numel() != 1:
        what = _kind(loss.mean) if isinstance(loss.mean, Tensor) else type(loss.mean).__name__
        raise UserError(
            f"loss: it returns {what}: return one number as a tensor, the mean over the batch (as with "
            f"reduction='mean'), or a pipelocal.tasks.Loss"
        )
    return loss if loss.mean.dim() == 0 else loss._replace(mean=loss.mean.reshape(()))


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def check_shape(target: Tensor, shape: Shape, *, what: str) -> None:
    """Refuse targets of other shapes.

    Args:
        target: ``[B, ...]``.
        shape: wanted shape of one row.
        what: names the task in the error.

    Raises:
        DataError: they have another shape.
    """
    if tuple(target.shape[1:]) != shape:
        raise DataError(
            f"targets of shape {list(target.shape)}, but {what} wants {batch_of(shape)}: make the data's "
            f"targets and the model's output go together"
        )


def batch_of(shape: Shape) -> str:
    """Format the shape of a batch of such rows: ``[B, 3, 8, 8]``."""
    return f"[{', '.join(['B', *map(str, shape)])}]"
