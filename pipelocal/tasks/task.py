"""The interface of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""Called with outputs and targets; returns a scalar, the mean over the batch."""

Metric = Callable[[Tensor, Tensor], Tensor]
"""Called with outputs and targets; returns a scalar, the sum over all predictions of the batch."""


class Task(Protocol):
    """What a network learns, as far as stages need to know it."""

    @property
    def classes(self) -> int | None:
        """Width of an output's last dimension; None for the width of the model's own output."""

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the metrics besides the loss; the first decides which snapshot is best."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss that trains and evaluates a head: a scalar, the mean over the batch."""

    def counts(self, output: Tensor, target: Tensor) -> Sequence[Tensor]:
        """Return one scalar for each of :attr:`metrics`: a sum over all predictions of the batch."""

    def votes(self, output: Tensor) -> Tensor:
        """Return what the ensemble sums over all heads, with the shape of the output."""
