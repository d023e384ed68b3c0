"""Classification: one class for each sample, or for each token of a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from pipelocal.errors import UserError
from pipelocal.tasks.task import Loss, Metric


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Cross entropy of logits ``[B, ..., classes]`` and labels ``[B, ...]``, int64, with accuracy.

    Args:
        classes: number of classes, with labels ``0 .. classes - 1``; by default the width of the
            model's own output.
        label_smoothing: label smoothing of the cross entropy, from 0 to below 1.
        loss_function: replaces cross entropy, such as ``nn.CrossEntropyLoss(weight)`` or your own
            function: called with logits and labels, it returns a scalar, the mean over the batch.
        further_metrics: functions of logits and labels by name, each of which returns a sum over all
            predictions; reported as means, next to ``accuracy``.

    Raises:
        UserError: a value is out of range, or both label smoothing and a loss are given.
    """

    classes: int | None = None
    label_smoothing: float = 0.0
    loss_function: Loss | None = None
    further_metrics: Mapping[str, Metric] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.classes is not None and self.classes < 1:
            raise UserError(f"classes={self.classes}: give at least one")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing={self.label_smoothing}: give 0 to below 1")
        if self.loss_function is not None and self.label_smoothing:
            raise UserError(
                "label_smoothing is of the cross entropy: leave it out beside a loss_function"
            )
        if "accuracy" in self.further_metrics or "loss" in self.further_metrics:
            raise UserError(
                "further_metrics: accuracy and loss are there already: give other names"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """See :class:`~pipelocal.tasks.task.Task`."""
        return ("accuracy", *self.further_metrics)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """See :class:`~pipelocal.tasks.task.Task`."""
        if self.loss_function is not None:
            return self.loss_function(output, target)
        return cross_entropy(output, target, label_smoothing=self.label_smoothing)

    def counts(self, output: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """See :class:`~pipelocal.tasks.task.Task`."""
        right = count_correct(output, target)
        return (right, *(metric(output, target) for metric in self.further_metrics.values()))

    def votes(self, output: Tensor) -> Tensor:
        """Return the class probabilities."""
        return output.softmax(-1)


def cross_entropy(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Compute the mean cross entropy; logits ``[..., classes]``, target int64 ``[...]``."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten(), label_smoothing=label_smoothing)


def count_correct(logits: Tensor, target: Tensor) -> Tensor:
    """Count the correct predictions, as a scalar; logits ``[..., classes]``, target ``[...]``."""
    return (logits.argmax(-1) == target).sum()
