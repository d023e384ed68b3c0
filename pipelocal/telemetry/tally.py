"""Sums of what a stage's batches showed, kept on the device until somebody reads them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelocal.objective.reconciliation import Residual


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Means over the rows that a tally saw; None where it saw none."""

    rows: int
    loss: float | None
    accuracy: float | None
    """Fraction of right predictions, 0 to 1."""
    reconciliation: float | None
    """Mean distance between eta and delta over the rows that were reconciled; None without any."""
    cosine: float | None
    """Mean cosine between the two, over the same rows."""
    residual: float | None
    """Mean relative length of their difference, over the same rows."""


class Tally:
    """Adds up loss, right predictions and residuals, without reading the device.

    Args:
        device: where the sums live; reading them waits for that device, adding does not.
        windows: number of sums that are kept of the same batches and reset one by one.
        total: makes sums over all replicas of those of one; they then read at the same time.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        windows: int = 1,
        total: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self._total = total
        self._sums = torch.zeros(windows, 5, dtype=torch.float64, device=device)
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.rows = [0] * windows
        """Rows of each window since its last reset."""
        self._predictions = [0] * windows
        self._reconciled_rows = [0] * windows

    def add(
        self,
        *,
        batch: int,
        rows: int,
        loss: Tensor,
        correct: Tensor,
        predictions: int,
        residual: Residual | None = None,
    ) -> None:
        """One batch: mean ``loss``, number ``correct`` of ``predictions``; scalars."""
        sums = [correct.double(), rows * loss.double()]
        fine = torch.isfinite(loss)
        if residual is not None:
            means = (residual.distance, residual.cosine, residual.relative)
            sums += [rows * mean.double() for mean in means]
            fine &= torch.isfinite(residual.distance)
        self._sums[:, : len(sums)] += torch.stack(sums)
        for window in range(len(self.rows)):
            self.rows[window] += rows
            self._predictions[window] += predictions
            self._reconciled_rows[window] += 0 if residual is None else rows
        self._first_bad.masked_fill_(~fine & (self._first_bad < 0), batch)

    def state_dict(self) -> dict[str, Any]:
        """The sums as they are."""
        return {
            "sums": self._sums,
            "rows": list(self.rows),
            "predictions": list(self._predictions),
            "reconciled_rows": list(self._reconciled_rows),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._sums.copy_(state["sums"])
        self.rows = list(state["rows"])
        self._predictions = list(state["predictions"])
        self._reconciled_rows = list(state["reconciled_rows"])

    def first_bad_batch(self) -> int | None:
        """Number of the first batch whose loss or distance was not finite; waits for the device."""
        batch = int(self._first_bad.item())
        return None if batch < 0 else batch

    def read_and_reset(self, window: int = 0) -> Reading:
        """The means since the last reset of a window; waits for the device."""
        counts = (self.rows[window], self._predictions[window], self._reconciled_rows[window])
        own = torch.cat([self._sums[window].cpu(), torch.tensor(counts, dtype=torch.float64)])
        correct, loss, *residual, rows, predictions, reconciled = self._total(own).tolist()
        self._sums[window].zero_()
        self.rows[window] = self._predictions[window] = self._reconciled_rows[window] = 0
        distance, cosine, relative = (
            (value / reconciled if reconciled else None) for value in residual
        )
        return Reading(
            rows=int(rows),
            loss=loss / rows if rows else None,
            accuracy=correct / predictions if predictions else None,
            reconciliation=distance,
            cosine=cosine,
            residual=relative,
        )
