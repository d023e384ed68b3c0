"""Segmentation: one class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipelocal.data.dataset import DataInfo
from pipelocal.errors import UserError
from pipelocal.tasks.labels import (
    as_weights,
    check_classes,
    check_labels,
    check_weights,
    count,
    counted,
    known_classes,
    log_of,
    weighted_cross_entropy,
)
from pipelocal.tasks.task import Loss, LossFunction, Shape, Sums, Task, batch_of, loss_of


@dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """Cross entropy of logits ``[B, classes, H, W]`` and labels ``[B, H, W]``, int64, with mean IoU.

    Reported are ``mean_iou``, the mean over the classes that occur in labels or predictions of all images
    together, and ``pixel_accuracy``.

    Args:
        classes: number of classes, with labels ``0 .. classes - 1``; by default as the data or the model's
            own output says.
        ignore_index: label of pixels that do not count (void), such as 255; by default all count.
        class_weights: weight of each class in the loss; by default 1.
        loss_function: replaces the cross entropy: called with logits and labels, it returns a scalar, the
            mean over the batch, or a :class:`~pipelocal.tasks.task.Loss`.

    Raises:
        UserError: a value is out of range.
    """

    classes: int | None = None
    ignore_index: int | None = None
    class_weights: Sequence[float] | Tensor | None = None
    loss_function: LossFunction | None = None

    metrics = ("mean_iou", "pixel_accuracy")

    def __post_init__(self) -> None:
        check_classes(self.classes)
        object.__setattr__(self, "class_weights", as_weights(self.class_weights))
        if self.loss_function is not None and self.class_weights:
            raise UserError(
                "class_weights is of the cross entropy: leave it out beside a loss_function"
            )

    def with_loss(self, loss: LossFunction) -> Segmentation:
        """Return the same with another loss."""
        return replace(self, loss_function=loss)

    def check_target(self, target: Tensor, output_shape: Shape) -> None:
        """See :class:`~pipelocal.tasks.task.Task`."""
        classes, *shape = output_shape
        ignored = self.ignore_index
        check_labels(target, tuple(shape), classes, ignore_index=ignored, what="segmentation")

    def output_shape(self, info: DataInfo, made: Shape | None) -> Shape:
        """See :class:`~pipelocal.tasks.task.Task`."""
        if len(info.target_shape) != 2:
            raise UserError(
                f"the data's targets have the shape {batch_of(info.target_shape)}, but segmentation wants "
                f"labels [B, H, W]: one for each pixel"
            )
        classes = known_classes(self.classes, info.classes, made[0] if made else None)
        check_weights(as_weights(self.class_weights), classes)
        return (classes, *info.target_shape)

    def width(self, output_shape: Shape) -> int:
        """See :class:`~pipelocal.tasks.task.Task`."""
        return output_shape[0]

    def loss(self, output: Tensor, target: Tensor) -> Loss:
        """See :class:`~pipelocal.tasks.task.Task`."""
        if self.loss_function is not None:
            weight = count(target, counted(target, self.ignore_index))
            return loss_of(self.loss_function, output, target, weight)
        return weighted_cross_entropy(
            output,
            target,
            class_weights=as_weights(self.class_weights),
            ignore_index=self.ignore_index,
        )

    def sums(self, output: Tensor, target: Tensor) -> Sums:
        """Return the confusion matrix ``[classes, classes]``: rows are labels, columns predictions."""
        classes = output.shape[1]
        cells, mask = target * classes + output.argmax(1), counted(target, self.ignore_index)
        # No bincount: on a GPU it waits for the device. Ignored pixels have a cell of their own.
        if mask is not None:
            cells = cells.masked_fill(~mask, classes * classes)
        found = torch.zeros(classes * classes + 1, dtype=torch.int64, device=cells.device)
        found.scatter_add_(0, cells.flatten(), torch.ones_like(cells).flatten())
        return {"confusion": found[:-1].view(classes, classes)}

    def figures(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """See :class:`~pipelocal.tasks.task.Task`."""
        confusion = sums["confusion"]
        right = confusion.diagonal()
        either = confusion.sum(0) + confusion.sum(1) - right
        occurs = either > 0
        return {
            "mean_iou": float((right[occurs] / either[occurs]).mean()),
            "pixel_accuracy": float(right.sum() / confusion.sum()),
        }

    def votes(self, output: Tensor) -> Tensor:
        """Return the class probabilities of each pixel."""
        return output.softmax(1)

    def from_votes(self, mean: Tensor) -> Tensor:
        """Return the logarithms of the probabilities."""
        return log_of(mean)
