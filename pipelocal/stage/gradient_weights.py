"""Weighs the gradients of the batches of one update by how much of each batch counts.

A stage's gradient is that of a batch's mean loss. An update wants the mean over all that counts in its
batches, where a batch with many padded tokens, or the last rows of an epoch, counts less::

    g = (w_1 g_1 + w_2 g_2 + ...) / (w_1 + w_2 + ...)

The parameters' ``.grad`` holds the sum divided by a unit, the weight of the newest batch, so that batches of
equal weight add up as they are, to the same bits as an ordinary sum of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pipelocal.stage.replicas import Replicas, Wait

Weight = Tensor | float

Parameters = Callable[[], Iterable[Tensor]]
"""Returns what has the gradients; called only where these must be scaled."""


class GradientWeights:
    """The weights of one update's batches; reads no device, except among replicas."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin another update."""
        self._total: Weight = 0.0
        self._unit: Weight | None = None
        self._batches = 0
        self._plain = False
        """Whether the gradients so far are a plain sum, of a snapshot that knew no weights."""

    def add(self, weight: Weight, parameters: Parameters) -> None:
        """Weigh in a batch; its gradients are not added yet."""
        if self._plain:
            self._total, self._unit, self._plain = self._batches * weight, weight, False
        before = 1.0 if self._unit is None else self._unit
        if isinstance(weight, Tensor):
            unit: Weight = torch.where(weight > 0, weight, torch.as_tensor(before).to(weight))
        else:
            unit = weight if weight > 0 else before
        self._express_in(unit, parameters)
        self._total, self._batches = self._total + weight, self._batches + 1

    @property
    def on_host(self) -> bool:
        """Whether the weights can be read without waiting for a device."""
        return not any(isinstance(each, Tensor) for each in (self._total, self._unit))

    def begin_align(self, replicas: Replicas) -> Wait[Tensor]:
        """Begin to agree with the other replicas on unit and total weight, once all batches are weighed."""
        unit = 0.0 if self._unit is None else float(self._unit)
        return replicas.begin_each(torch.tensor([float(self._total), unit], dtype=torch.float64))

    def align(self, every: Tensor, parameters: Parameters) -> None:
        """Express the gradients in a common unit, before they are averaged.

        Args:
            every: what was waited for, float64 ``[replicas, 2]``.
            parameters: of the gradients.
        """
        common = float(every[:, 1].max()) or 1.0
        if self._unit is not None:
            self._express_in(common, parameters)
        self._unit, self._total = common, float(every[:, 0].sum())

    def share(self, replicas: int) -> Weight:
        """Return what the gradients, averaged over the replicas, are to be divided by."""
        if self._unit is None or (self._batches == 1 and replicas == 1):
            return 1.0
        share = self._total / self._unit / replicas
        if isinstance(share, Tensor):
            return torch.where(share > 0, share, torch.ones_like(share))
        return share or 1.0  # nothing counts: the gradients are zeros

    def state_dict(self) -> list[float]:
        """Return total, unit and number of batches."""
        unit = 0.0 if self._unit is None else float(self._unit)
        return [float(self._total), unit, float(self._batches)]

    def load_state_dict(self, state: list[float] | None, *, batches: int) -> None:
        """Load a :meth:`state_dict`; None for a plain sum over some batches."""
        self.reset()
        if state is None:
            self._total, self._batches = float(batches), batches
            self._unit, self._plain = (1.0, True) if batches else (None, False)
            return
        self._total, unit, count = state
        self._unit, self._batches = unit or None, int(count)

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
