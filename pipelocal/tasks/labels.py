"""What tasks share whose targets are class labels: the check, the cross entropy, and which labels count."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelocal.errors import DataError, UserError
from pipelocal.tasks.task import Loss, Shape, check_shape


def check_classes(classes: int | None, *, name: str = "classes") -> None:
    """Refuse an impossible number of classes.

    Raises:
        UserError: there is less than one.
    """
    if classes is not None and classes < 1:
        raise UserError(f"{name}={classes}: give at least one")


def known_classes(
    given: int | None, of_data: int | None, of_model: int | None, *, name: str = "classes"
) -> int:
    """Return the number of classes: what the task says, else the data, else the model.

    Raises:
        UserError: nobody says it.
    """
    for classes in (given, of_data, of_model):
        if classes is not None:
            return classes
    raise UserError(f"the number of classes is not known: give the task {name}=")


def check_labels(
    target: Tensor, shape: Shape, classes: int, *, ignore_index: int | None, what: str
) -> None:
    """Refuse labels of other dtypes and shapes, and those out of range.

    Args:
        target: ``[B, *shape]``.
        shape: wanted shape of the labels of one row.
        classes: number of classes.
        ignore_index: label that does not count; None for none.
        what: names the task in the error.

    Raises:
        DataError: says what they are and what is wanted.
    """
    if target.dtype != torch.int64:
        raise DataError(
            f"targets are {target.dtype}, but {what} wants labels, int64: for numbers choose the task "
            f"Regression, for several labels a sample MultiLabel"
        )
    check_shape(target, shape, what=what)
    if not target.numel():
        return
    low, high = (int(end) for end in target.aminmax())
    if low >= 0 and high < classes:
        return
    counted = target if ignore_index is None else target[target != ignore_index]
    if counted.numel():
        low, high = (int(end) for end in counted.aminmax())
        if low < 0 or high >= classes:
            mend = (
                ": number classes from 0, or give ignore_index= for labels that do not count"
                if ignore_index is None
                else ""
            )
            raise DataError(
                f"labels run from {low} to {high}, but {classes} classes allow 0 to {classes - 1}{mend}"
            )


def as_weights(weights: Iterable[float] | Tensor | None) -> tuple[float, ...] | None:
    """Return the weights of classes as plain numbers.

    Raises:
        UserError: one is negative or not finite, or all are 0.
    """
    if weights is None:
        return None
    found = tuple(float(weight) for weight in weights)
    if not found or min(found) < 0 or max(found) == 0 or not all(w < float("inf") for w in found):
        raise UserError(
            f"class_weights={list(found)}: give a finite number of at least 0 for each class, not all 0"
        )
    return found


def check_weights(weights: tuple[float, ...] | None, classes: int) -> None:
    """Refuse weights of another number of classes.

    Raises:
        UserError: there are more or fewer.
    """
    if weights is not None and len(weights) != classes:
        raise UserError(f"class_weights: {len(weights)} for {classes} classes: give one for each")


def counted(target: Tensor, ignore_index: int | None) -> Tensor | None:
    """Return which labels count, with the shape of ``target``; None if all do."""
    return None if ignore_index is None else target != ignore_index


def count(target: Tensor, mask: Tensor | None) -> Tensor | float:
    """Return how many labels count."""
    return target.numel() if mask is None else mask.sum()


def weighted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    class_weights: tuple[float, ...] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Loss:
    """Compute the mean cross entropy over the labels that count, each with its class's weight.

    Args:
        logits: ``[N, C, ...]``.
        target: labels ``[N, ...]``, int64, or probabilities ``[N, C, ...]``.
        class_weights: for each class; None for 1.
        ignore_index: label that does not count; None for none.
        label_smoothing: from 0 to below 1.
    """
    weights = None if class_weights is None else _on(class_weights, logits.dtype, logits.device)
    if target.is_floating_point():
        mean = F.cross_entropy(logits, target, weights, label_smoothing=label_smoothing)
        return Loss(mean, logits.numel() // logits.shape[1])
    if weights is None and ignore_index is None:
        mean = F.cross_entropy(logits, target, label_smoothing=label_smoothing)
        return Loss(mean, target.numel())
    # A sum and a quotient, for the mean is NaN where no label counts.
    mask = counted(target, ignore_index)
    total = F.cross_entropy(
        logits,
        target,
        weights,
        ignore_index=-100 if ignore_index is None else ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if weights is None:
        assert mask is not None
        weight = mask.sum()
    elif mask is None:
        weight = weights[target].sum()
    else:
        weight = (weights[target.masked_fill(~mask, 0)] * mask).sum()
    return Loss(total / torch.where(weight > 0, weight, 1), weight)


def log_of(probabilities: Tensor) -> Tensor:
    """Return logits with these probabilities; one of 0 is taken as the least positive number."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


@lru_cache(maxsize=64)
def _on(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the weights as a tensor; kept, since copying them to a device waits for it."""
    return torch.tensor(weights, dtype=dtype, device=device)
