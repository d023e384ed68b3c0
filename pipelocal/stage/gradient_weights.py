"""Weighs the gradients of the batches of one update by how much of each batch counts.

A stage's gradient is that of a batch's mean loss. An update wants the mean over all that counts in its
batches, where a batch with many padded tokens, or the last rows of an epoch, counts less::

    g = (w_1 g_1 + w_2 g_2 + ...) / (w_1 + w_2 + ...)

The parameters' ``.grad`` holds the sum divided by a unit, the weight of the newest batch, so that batches of
equal weight add up as they are, to the same bits as an ordinary sum of gradients.

Before replicas average, each expresses its sum in a unit that all have: the mean weight of the batches of
the run's first update. They agree on it then, so that later updates wait for nothing but the average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pipelocal.stage.replicas import Replicas, Weight

Parameters = Callable[[], Iterable[Tensor]]
"""Returns what has the gradients; called only where these must be scaled."""


class GradientWeights:
    """The weights of one update's batches; reads no device, but at the first update."""

    def __init__(self) -> None:
        self._common: float | None = None
        """The unit in which replicas average; None until the first update."""
        self.reset()

    def reset(self) -> None:
        """Begin another update."""
        self.total: Weight = 0.0
        """Weight of all batches; once replicas have averaged, of all of theirs."""
        self._unit: Weight | None = None
        self._batches = 0
        self._plain = False
        """Whether the gradients so far are a plain sum, of a snapshot that knew no weights."""

    def add(self, weight: Weight, parameters: Parameters) -> None:
        """Weigh in a batch; its gradients are not added yet."""
        if self._plain:
            self.total, self._unit, self._plain = self._batches * weight, weight, False
        before = 1.0 if self._unit is None else self._unit
        if isinstance(weight, Tensor):
            unit: Weight = torch.where(weight > 0, weight, torch.as_tensor(before).to(weight))
        else:
            unit = weight if weight > 0 else before
        self._express_in(unit, parameters)
        self.total, self._batches = self.total + weight, self._batches + 1

    def align(self, replicas: Replicas, batches: int, parameters: Parameters) -> None:
        """Express the gradients in the replicas' common unit, before they are averaged.

        At the first update, this waits for the other replicas.

        Args:
            replicas: the replicas, possibly a single one.
            batches: number of batches of the update, of all replicas together; a single one keeps its bits.
            parameters: of the gradients.
        """
        if self._common is None:
            totals = replicas.each(torch.tensor(float(self.total), dtype=torch.float64))
            self._common = float(totals.sum()) / batches or None
        if replicas.count > 1 and batches > 1:
            self._express_in(self._common or 1.0, parameters)

    def share(self, replicas: int, batches: int) -> Weight:
        """Return what the gradients, averaged over the replicas, are to be divided by.

        Args:
            replicas: number of replicas.
            batches: number of batches of the update, of all replicas together.
        """
        if batches == 1:
            return 1 / replicas
        if self._unit is None:
            return 1.0
        share = self.total / self._unit / replicas
        if isinstance(share, Tensor):
            return torch.where(share > 0, share, torch.ones_like(share))
        return share or 1.0  # nothing counts: the gradients are zeros

    def state_dict(self) -> list[float]:
        """Return total, unit, number of batches and the replicas' common unit, 0 for none."""
        unit = 0.0 if self._unit is None else float(self._unit)
        return [float(self.total), unit, float(self._batches), self._common or 0.0]

    def load_state_dict(self, state: list[float] | None, *, batches: int) -> None:
        """Load a :meth:`state_dict`; None for a plain sum over some batches."""
        self.reset()
        if state is None:
            self.total, self._batches = float(batches), batches
            self._unit, self._plain = (1.0, True) if batches else (None, False)
            return
        self.total, unit, count, *common = state
        self._unit, self._batches = unit or None, int(count)
        self._common = (common[0] or None) if common else None

    def _express_in(self, unit: Weight, parameters: Parameters) -> None:
        old, self._unit = self._unit, unit
        if old is None or (
            not isinstance(old, Tensor) and not isinstance(unit, Tensor) and old == unit
        ):
            return
        factor = old / unit
        for parameter in parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
