"""Classification: one class for each sample, or for each token of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelocal.data.dataset import DataInfo
from pipelocal.errors import DataError, UserError
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
from pipelocal.tasks.task import Loss, LossFunction, Metric, Shape, Sums, Task, batch_of, loss_of


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Cross entropy of logits ``[B, ..., classes]`` and labels ``[B, ...]``, int64, with accuracy.

    Training targets may also be probabilities ``[B, ..., classes]``, floating, as MixUp makes them; then the
    class with the largest share is the right one.

    Args:
        classes: number of classes, with labels ``0 .. classes - 1``; by default as the data or the model's
            own output says.
        class_weights: weight of each class in the loss; by default 1.
        ignore_index: label of what does not count, neither in loss nor in metrics; by default all count.
        label_smoothing: label smoothing of the cross entropy, from 0 to below 1.
        top_k: also report, as ``topK``, how often the label is among the K largest logits.
        loss_function: replaces cross entropy, such as ``nn.MultiMarginLoss()`` or your own function: called
            with logits and labels, it returns a scalar, the mean over the batch, or a
            :class:`~pipelocal.tasks.task.Loss`.
        further_metrics: functions of logits and labels by name, each of which returns a sum over all
            predictions; reported as means, next to ``accuracy``.

    Raises:
        UserError: a value is out of range, or a loss is given beside what is of the cross entropy.
    """

    classes: int | None = None
    class_weights: Sequence[float] | Tensor | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    top_k: int | None = None
    loss_function: LossFunction | None = None
    further_metrics: Mapping[str, Metric] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classes(self.classes)
        object.__setattr__(self, "class_weights", as_weights(self.class_weights))
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing={self.label_smoothing}: give 0 to below 1")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k}: give at least 1")
        for name in ("label_smoothing", "class_weights"):
            if self.loss_function is not None and getattr(self, name):
                raise UserError(
                    f"{name} is of the cross entropy: leave it out beside a loss_function"
                )
        if "accuracy" in self.further_metrics or "loss" in self.further_metrics:
            raise UserError(
                "further_metrics: accuracy and loss are there already: give other names"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """See :class:`~pipelocal.tasks.task.Task`."""
        return ("accuracy", *self._top, *self.further_metrics)

    @property
    def _top(self) -> tuple[str, ...]:
        return () if self.top_k is None else (f"top{self.top_k}",)

    @property
    def plain(self) -> bool:
        """Whether the loss is the plain mean cross entropy, and accuracy the only metric."""
        return self == Classification(classes=self.classes)

    def with_loss(self, loss: LossFunction) -> Classification:
        """Return the same with another loss."""
        return replace(self, loss_function=loss)

    def check_target(self, target: Tensor, output_shape: Shape) -> None:
        """See :class:`~pipelocal.tasks.task.Task`."""
        if target.is_floating_point() and tuple(target.shape[1:]) == output_shape:
            if not bool((torch.isfinite(target) & (target >= 0)).all()):
                raise DataError(
                    "targets hold shares of classes that are negative, NaN or infinite: give 0 to 1"
                )
            return
        *shape, classes = output_shape
        check_labels(
            target,
            tuple(shape),
            classes,
            ignore_index=self.ignore_index,
            what="classification",
        )

    def output_shape(self, info: DataInfo, made: Shape | None) -> Shape:
        """See :class:`~pipelocal.tasks.task.Task`."""
        if info.classes is None and info.target_dtype.is_floating_point:
            raise UserError(
                f"the data's targets are {info.target_dtype} {batch_of(info.target_shape)}, and "
                f"classification wants labels, int64: choose the task Regression (--task regression) for "
                f"numbers, MultiLabel (--task multi-label) for several labels a sample"
            )
        classes = known_classes(self.classes, info.classes, made[-1] if made else None)
        check_weights(as_weights(self.class_weights), classes)
        if self.top_k is not None and self.top_k > classes:
            raise UserError(f"top_k={self.top_k}: there are {classes} classes: give at most that")
        wanted = (*info.target_shape, classes)
        if made is not None and made != wanted and made[1:] == info.target_shape and made[1:]:
            raise UserError(
                f"the data's labels {batch_of(info.target_shape)} and the model's outputs {batch_of(made)} "
                f"are of pixels: choose the task Segmentation (--task segmentation)"
            )
        return wanted

    def loss(self, output: Tensor, target: Tensor) -> Loss:
        """See :class:`~pipelocal.tasks.task.Task`."""
        if self.loss_function is not None:
            weight = self._count(output, target)
            return loss_of(self.loss_function, output, target, weight)
        soft = target.is_floating_point()
        if not soft and self.class_weights is None and self.ignore_index is None:
            mean = cross_entropy(output, target, label_smoothing=self.label_smoothing)
            return Loss(mean, target.numel())
        return weighted_cross_entropy(
            output.flatten(0, -2),
            target.flatten(0, -2) if soft else target.flatten(),
            class_weights=as_weights(self.class_weights),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    def sums(self, output: Tensor, target: Tensor) -> Sums:
        """See :class:`~pipelocal.tasks.task.Task`."""
        labels = target.argmax(-1) if target.is_floating_point() else target
        found: dict[str, Tensor | float] = {
            "predictions": self._count(output, target),
            "accuracy": self._count_right(output.argmax(-1) == labels, target),
        }
        for name in self._top:
            assert self.top_k is not None
            best = output.topk(self.top_k, -1).indices
            found[name] = self._count_right((best == labels.unsqueeze(-1)).any(-1), target)
        for name, metric in self.further_metrics.items():
            found[name] = metric(output, target)
        return found

    def figures(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """See :class:`~pipelocal.tasks.task.Task`."""
        return {name: float(sums[name] / sums["predictions"]) for name in self.metrics}

    def votes(self, output: Tensor) -> Tensor:
        """Return the class probabilities."""
        return output.softmax(-1)

    def from_votes(self, mean: Tensor) -> Tensor:
        """Return the logarithms of the probabilities."""
        return log_of(mean)

    def _count(self, output: Tensor, target: Tensor) -> Tensor | float:
        if target.is_floating_point():
            return output.numel() // output.shape[-1]
        return count(target, counted(target, self.ignore_index))

    def _count_right(self, right: Tensor, target: Tensor) -> Tensor:
        mask = None if target.is_floating_point() else counted(target, self.ignore_index)
        return (right if mask is None else right & mask).sum()


def cross_entropy(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Compute the mean cross entropy; logits ``[..., classes]``, target int64 ``[...]``."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten(), label_smoothing=label_smoothing)
