"""Multi-label classification: each label of a sample holds or does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, kw_only=True)
class MultiLabel(Task):
    """Binary cross entropy of logits ``[B, labels]`` and targets ``[B, labels]``, 0 or 1, with F1.

    A label is predicted if its logit is positive. Reported are ``f1``, over all labels together (micro), and
    ``macro_f1``, the mean of every label's own; a label that neither occurs nor is predicted has F1 0.

    Args:
        labels: number of labels; by default as many as a target has.
        ignore_index: value of a target that is not known and does not count, such as -1; by default all
            count.
        loss_function: replaces the binary cross entropy: called with logits and targets, it returns a
            scalar, the mean over the batch, or a :class:`~pipelocal.tasks.task.Loss`.

    Raises:
        UserError: a value is out of range.
    """

    labels: int | None = None
    ignore_index: int | None = None
    loss_function: LossFunction | None = None

    metrics = ("f1", "macro_f1")

    def __post_init__(self) -> None:
        check_classes(self.labels, name="labels")
        if self.ignore_index is not None and 0 <= self.ignore_index <= 1:
            raise UserError(
                f"ignore_index={self.ignore_index}: 0 and 1 say that a label holds or not: give another "
                f"value, such as -1"
            )

    def with_loss(self, loss: LossFunction) -> MultiLabel:
        """Return the same with another loss."""
        return replace(self, loss_function=loss)

    def check_target(self, target: Tensor, output_shape: Shape) -> None:
        """See :class:`~pipelocal.tasks.task.Task`."""
        check_shape(target, output_shape, what="multi-label")
        valid = (target >= 0) & (target <= 1)
        if self.ignore_index is not None:
            valid |= target == self.ignore_index
        if not bool(valid.all()):
            wrong = target[~valid].flatten()[0]
            raise DataError(
                f"a target of {wrong.item():g}, but multi-label wants 0 or 1 for every label: turn class "
                f"numbers into such rows, or give ignore_index= for what is not known"
            )

    def output_shape(self, info: DataInfo, made: Shape | None) -> Shape:
        """See :class:`~pipelocal.tasks.task.Task`."""
        del made
        if not info.target_shape or self.labels not in (None, info.target_shape[-1]):
            wanted = "labels" if self.labels is None else self.labels
            raise UserError(
                f"the data's targets have the shape {batch_of(info.target_shape)}, but multi-label wants "
                f"[B, {wanted}]: a 0 or 1 for every label"
            )
        return info.target_shape

    def loss(self, output: Tensor, target: Tensor) -> Loss:
        """See :class:`~pipelocal.tasks.task.Task`."""
        mask = self._known(target)
        weight: Tensor | float = target.numel() if mask is None else mask.sum()
        if self.loss_function is not None:
            return loss_of(self.loss_function, output, target, weight)
        wanted = target.to(output.dtype)
        if mask is None or not isinstance(weight, Tensor):
            return Loss(F.binary_cross_entropy_with_logits(output, wanted), weight)
        wanted = wanted.masked_fill(~mask, 0)
        each = F.binary_cross_entropy_with_logits(output, wanted, reduction="none")
        return Loss((each * mask).sum() / weight.clamp_min(1), weight)

    def sums(self, output: Tensor, target: Tensor) -> Sums:
        """See :class:`~pipelocal.tasks.task.Task`."""
        mask, predicted, true = self._known(target), output > 0, target > 0.5
        if mask is not None:
            predicted, true = predicted & mask, true & mask
        kinds = {"hits": predicted & true, "predicted": predicted, "true": true}
        return {name: kind.flatten(0, -2).sum(0) for name, kind in kinds.items()}

    def figures(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """See :class:`~pipelocal.tasks.task.Task`."""
        hits, both = sums["hits"], sums["predicted"] + sums["true"]
        of_each = torch.where(both > 0, 2 * hits / both, 0.0)
        return {"f1": float(2 * hits.sum() / both.sum()), "macro_f1": float(of_each.mean())}

    def votes(self, output: Tensor) -> Tensor:
        """Return every label's probability."""
        return output.sigmoid()

    def from_votes(self, mean: Tensor) -> Tensor:
        """Return the logits of the probabilities."""
        return mean.logit(eps=torch.finfo(mean.dtype).eps)

    def _known(self, target: Tensor) -> Tensor | None:
        return None if self.ignore_index is None else target != self.ignore_index
