"""What every task says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""Called with outputs and targets; a scalar, mean over the batch."""

Metric = Callable[[Tensor, Tensor], Tensor]
"""Called with outputs and targets; a scalar, the sum over all predictions of the batch."""


class Task(Protocol):
    """What a network learns, as far as stages need to know it."""

    @property
    def classes(self) -> int | None:
        """Width of an output's last dimension; None for that of the model's own output."""

    @property
    def metrics(self) -> Sequence[str]:
        """Names of what is counted beside the loss; the first says which snapshot is the best."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """What a head is trained by, and evaluated: a scalar, mean over the batch."""

    def counts(self, output: Tensor, target: Tensor) -> Sequence[Tensor]:
        """One scalar for each of :attr:`metrics`: a sum over all predictions of the batch."""

    def votes(self, output: Tensor) -> Tensor:
        """What the heads' ensemble sums over all heads, of the output's shape."""
