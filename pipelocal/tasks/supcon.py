"""Supervised contrast (Khosla et al. 2020, arXiv 2004.11362) as the loss of auxiliary heads."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelocal.data.dataset import DataInfo
from pipelocal.errors import UserError
from pipelocal.tasks.classification import Classification
from pipelocal.tasks.labels import counted
from pipelocal.tasks.task import Loss, Shape, Task

OF_THE_CROSS_ENTROPY = ("class_weights", "label_smoothing", "loss_function")


@dataclass(frozen=True, kw_only=True)
class SupCon(Classification):
    """Supervised contrast of projections, beside the cross entropy of a linear probe; for ``head_task=``.

    In training a head makes logits and a projection side by side, ``[B, classes + dimensions]``
    (:class:`~pipelocal.heads.contrast.ContrastHead`). The probe does not train the stage's body; in
    evaluation it is the head.

    Args:
        temperature: of the cosines between projections.
        dimensions: size of a projection.

    Raises:
        UserError: a value is out of range, or it is of the cross entropy.
    """

    temperature: float = 0.07
    dimensions: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < float("inf") or self.dimensions < 1:
            raise UserError(
                f"SupCon: temperature={self.temperature}, dimensions={self.dimensions}: give numbers above 0"
            )
        for name in OF_THE_CROSS_ENTROPY:
            if getattr(self, name):
                raise UserError(f"SupCon: {name} is of the cross entropy: leave it out")

    def output_shape(self, info: DataInfo, made: Shape | None) -> Shape:
        """See :class:`~pipelocal.tasks.task.Task`; one label a sample, and no shares of several."""
        if info.target_shape:
            raise UserError(
                f"SupCon contrasts samples with one label each, and the data's are "
                f"{list(info.target_shape)}: leave it out"
            )
        if info.train_target is not None and info.train_target.dtype.is_floating_point:
            raise UserError(
                "SupCon contrasts samples with one label each, and --mixup and --cutmix mix them: "
                "leave one of them out"
            )
        return super().output_shape(info, made)

    def logits(self, output: Tensor) -> Tensor:
        """See :class:`~pipelocal.tasks.task.Task`; the probe's part, ``[B, classes]``."""
        assert self.classes is not None, "a stage is built with the number of classes"
        return output[..., : self.classes]

    def loss(self, output: Tensor, target: Tensor) -> Loss:
        """Compute the probe's cross entropy and, in training, the contrast of the projections."""
        logits = self.logits(output)
        probe = super().loss(logits, target)
        projections = output[..., logits.shape[-1] :]
        if projections.shape[-1] == 0:
            return probe
        contrast = supervised_contrast(
            F.normalize(projections, dim=-1),
            target,
            temperature=self.temperature,
            counts=counted(target, self.ignore_index),
        )
        return Loss(probe.mean + contrast, probe.weight)


def supervised_contrast(
    z: Tensor, labels: Tensor, *, temperature: float, counts: Tensor | None = None
) -> Tensor:
    """Compute the mean over the rows i of the mean over the other rows p of i's class of::

        - log( exp(z_i . z_p / temperature) / sum over rows a other than i of exp(z_i . z_a / temperature) )

    A row whose class no other row has adds 0, and counts as one.

    Args:
        z: rows of length 1, ``[B, D]``.
        labels: int64 ``[B]``.
        temperature: above 0.
        counts: which rows there are at all, bool ``[B]``; None for all.
    """
    there = torch.ones_like(labels, dtype=torch.bool) if counts is None else counts
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device) & there
    similar = (z @ z.T / temperature).masked_fill(~others, torch.finfo(z.dtype).min)
    logs = similar - similar.logsumexp(1, keepdim=True)
    alike = others & (labels.unsqueeze(1) == labels) & there.unsqueeze(1)
    of_rows = -logs.masked_fill(~alike, 0.0).sum(1) / alike.sum(1).clamp_min(1)
    return of_rows.sum() / there.sum().clamp_min(1)


def with_contrast(task: Task) -> SupCon:
    """Return the contrast for a classification.

    Raises:
        UserError: the task is another, or has a loss of its own.
    """
    if type(task) is not Classification:
        raise UserError(
            f"--head-loss supcon is for --task classification, not {type(task).__name__}: leave it out"
        )
    return SupCon(**{each.name: getattr(task, each.name) for each in fields(Classification)})
