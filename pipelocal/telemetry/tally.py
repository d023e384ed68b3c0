"""Sums of what a stage's batches showed, kept on the device until somebody reads them."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Means over the rows that a tally saw; None where it saw none."""

    rows: int
    loss: float | None
    accuracy: float | None
    """Fraction of right predictions, 0 to 1."""
    reconciliation: float | None
    """Mean distance between eta and delta; None on stages that do not reconcile."""


class Tally:
    """Adds up loss, right predictions and reconciliation distance, without reading the device.

    Args:
        device: where the sums live; reading them waits for that device, adding does not.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.rows = 0
        self._predictions = 0
        self._reconciled = False

    def add(
        self,
        *,
        batch: int,
        rows: int,
        loss: Tensor,
        correct: Tensor,
        predictions: int,
        reconciliation: Tensor | None = None,
    ) -> None:
        """One batch: mean ``loss``, number ``correct`` of ``predictions``, mean distance; scalars."""
        distance = torch.zeros_like(loss) if reconciliation is None else reconciliation
        self._reconciled |= reconciliation is not None
        self._sums += torch.stack(
            (loss.double() * rows, correct.double(), distance.double() * rows)
        )
        self.rows += rows
        self._predictions += predictions
        fine = torch.isfinite(loss) & torch.isfinite(distance)
        self._first_bad.masked_fill_(~fine & (self._first_bad < 0), batch)

    def first_bad_batch(self) -> int | None:
        """Number of the first batch whose loss or distance was not finite; waits for the device."""
        batch = int(self._first_bad.item())
        return None if batch < 0 else batch

    def read_and_reset(self) -> Reading:
        """The means since the last reset; waits for the device."""
        loss, correct, distance = self._sums.tolist()
        rows, predictions = self.rows, self._predictions
        self._sums.zero_()
        self.rows = self._predictions = 0
        return Reading(
            rows=rows,
            loss=loss / rows if rows else None,
            accuracy=correct / predictions if predictions else None,
            reconciliation=distance / rows if rows and self._reconciled else None,
        )
