"""The task: classes, of which training has the first ones only, and what is reported of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pipelocal as pl
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ZeroShot(pl.tasks.Task):
    """Logits ``[B, classes]``, and targets ``[B, 1 + R]``, int64.

    The first column of a target is the class, those of training first. The others say which of the R regions
    hold what the class is about, 1 or 0; nothing learns from them, they only show where a policy looks.

    All figures are means over classes of the share that is right, so that each class counts alike:

        s        of seen classes, among all classes
        u        of unseen classes, among all classes
        H        2 s u / (s + u)
        unseen   of unseen classes, among the unseen alone

    Args:
        classes: number of classes.
        seen: how many of them training has.
        regions: R.
    """

    classes: int
    seen: int
    regions: int

    metrics = ("H", "s", "u", "unseen")

    def output_shape(self, info: object, made: object) -> tuple[int, ...]:
        """See :class:`pipelocal.tasks.Task`."""
        del info, made
        return (self.classes,)

    def check_target(self, target: Tensor, output_shape: tuple[int, ...]) -> None:
        """See :class:`pipelocal.tasks.Task`."""
        del output_shape
        if target.dtype != torch.int64 or target.shape[1:] != (1 + self.regions,):
            raise pl.DataError(
                f"targets are {target.dtype} {list(target.shape)}: give the class and {self.regions} zeros "
                f"or ones, int64 [B, {1 + self.regions}]"
            )
        labels = target[:, 0]
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= self.classes):
            raise pl.DataError(
                f"classes run from {int(labels.min())} to {int(labels.max())}: give 0 to {self.classes - 1}"
            )

    def loss(self, output: Tensor, target: Tensor) -> pl.tasks.Loss:
        """See :class:`pipelocal.tasks.Task`; the cross entropy."""
        return pl.tasks.Loss(F.cross_entropy(output, target[:, 0]), len(target))

    def sums(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """See :class:`pipelocal.tasks.Task`; three counts for each class ``[classes]``."""
        labels = target[:, 0]
        among_unseen = output.clone()
        among_unseen[:, : self.seen] = float("-inf")

        def count(which: Tensor) -> Tensor:
            return output.new_zeros(self.classes).index_add(0, labels, which.to(output.dtype))

        return {
            "rows": count(torch.ones_like(labels)),
            "right": count(output.argmax(1) == labels),
            "right among unseen": count(among_unseen.argmax(1) == labels),
        }

    def figures(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """See :class:`pipelocal.tasks.Task`; NaN of classes that do not occur."""
        right, among_unseen, rows = (sums[n] for n in ("right", "right among unseen", "rows"))
        s = class_mean(right[: self.seen], rows[: self.seen])
        u = class_mean(right[self.seen :], rows[self.seen :])
        unseen = class_mean(among_unseen[self.seen :], rows[self.seen :])
        return {"H": harmonic(s, u), "s": s, "u": u, "unseen": unseen}

    def votes(self, output: Tensor) -> Tensor:
        """See :class:`pipelocal.tasks.Task`; the probabilities."""
        return output.softmax(-1)

    def from_votes(self, mean: Tensor) -> Tensor:
        """See :class:`pipelocal.tasks.Task`."""
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


def class_mean(right: Tensor, rows: Tensor) -> float:
    """Return the mean over the classes that occur of the share of rows that are right; both ``[classes]``."""
    there = rows > 0
    return float((right[there] / rows[there]).mean())


def harmonic(s: float, u: float) -> float:
    """Return the harmonic mean of two shares; 0 where both are 0."""
    return 2 * s * u / (s + u) if s + u != 0 else 0.0


def best_gamma(task: ZeroShot, logits: Tensor, target: Tensor) -> float:
    """Return what to take off the logits of seen classes so that H is greatest; of several, the least.

    Args:
        task: of these classes.
        logits: with nothing taken off, ``[N, classes]``; of data that were not trained on, with seen and
            unseen classes.
        target: their targets ``[N, 1 + R]``.
    """
    leads = logits[:, : task.seen].amax(1) - logits[:, task.seen :].amax(1)
    tried = torch.quantile(leads.clamp_min(0), torch.linspace(0, 1, 101, dtype=leads.dtype))
    tried = torch.cat([tried.new_zeros(1), tried])

    def score(gamma: float) -> float:
        less = logits.clone()
        less[:, : task.seen] -= gamma
        return task.figures(task.sums(less, target))["H"]

    return max((float(gamma) for gamma in tried), key=score)
