"""A task of one's own: tell the other view of an image from all other views of the batch (InfoNCE)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pipelocal as pl
import torch
from pipelocal.data import DataInfo
from pipelocal.errors import DataError
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class InfoNCE(pl.tasks.Task):
    """Contrast of two views: outputs are projections ``[B, dimensions]``, targets numbers of images ``[B]``.

    The loss of a row is the cross entropy of picking the other view of its image among all other rows, by
    cosine over temperature (SimCLR's, arXiv 2002.05709).

    Args:
        dimensions: of a projection.
        temperature: of the cosines.
    """

    dimensions: int = 32
    temperature: float = 0.2

    metrics = ("found",)

    def output_shape(self, info: DataInfo, made: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the shape of a projection."""
        del info, made
        return (self.dimensions,)

    def check_target(self, target: Tensor, output_shape: tuple[int, ...]) -> None:
        """Refuse a batch that has not two views of each of its images."""
        del output_shape
        counts = target.unique(return_counts=True)[1]
        if not (counts == 2).all():
            raise DataError("InfoNCE: a batch must hold two views of each of its images")

    def loss(self, output: Tensor, target: Tensor) -> pl.tasks.Loss:
        """Return the mean over the batch's rows."""
        other = self._same(target)
        logs = self._similarities(output).log_softmax(1)
        return pl.tasks.Loss(-torch.where(other, logs, 0).sum(1).mean(), len(target))

    def sums(self, output: Tensor, target: Tensor) -> Mapping[str, Tensor | float]:
        """Count the rows whose nearest row is the other view."""
        nearest = self._similarities(output).argmax(1)
        found = (target == target[nearest]).sum()
        return {"rows": float(len(target)), "found": found}

    def figures(self, sums: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Return the share of rows that found the other view."""
        return {"found": float(sums["found"] / sums["rows"])}

    def _similarities(self, output: Tensor) -> Tensor:
        """Cosines ``[B, B]`` over the temperature; a row is never its own choice."""
        rows = normalize(output, dim=1)
        cosines = rows @ rows.T / self.temperature
        return cosines.fill_diagonal_(float("-inf"))

    @staticmethod
    def _same(target: Tensor) -> Tensor:
        """Whether two rows are the two views of one image ``[B, B]``."""
        same = target[:, None] == target
        return same.fill_diagonal_(False)
