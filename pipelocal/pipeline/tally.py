"""Sums of a stage's metrics, kept on the device until they are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelocal.objective.residual import Residual

MEANS = 5
"""Number of means: correct predictions, loss, and three of reconciliation."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Means over the rows that a tally has added; None without any."""

    rows: int
    loss: float | None
    accuracy: float | None
    """Fraction of correct predictions, 0 to 1."""
    reconciliation: float | None
    """Mean distance between eta and delta over the rows that were reconciled; None without any."""
    cosine: float | None
    """Mean cosine between the two, over the same rows."""
    residual: float | None
    """Mean relative length of their difference, over the same rows."""
    further: dict[str, float | None] = field(default_factory=dict)
    """The task's further metrics, as means over the predictions, and the objective's figures, over the
    rows."""


class Tally:
    """Adds up loss, correct predictions and residuals, without reading the device.

    Args:
        device: where the sums live; reading them waits for that device, adding does not.
        windows: number of sums kept over the same batches, each reset on its own.
        metrics: names of the task's further metrics.
        figures: names of the objective's figures.
        each: gathers this tally's values from all replicas, ``[replicas, ...]``; they all read at
            the same time.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        windows: int = 1,
        metrics: Sequence[str] = (),
        figures: Sequence[str] = (),
        each: Callable[[Tensor], Tensor] = lambda values: values.unsqueeze(0),
    ) -> None:
        self._each = each
        self._metrics, self._figures = tuple(metrics), tuple(figures)
        columns = MEANS + len(self._metrics) + len(self._figures)
        self._sums = torch.zeros(windows, columns, dtype=torch.float64, device=device)
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.rows = [0] * windows
        """Number of rows in each window since its last reset."""
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
        further: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add one batch: mean ``loss``, number ``correct`` of ``predictions``; scalars.

        Args:
            batch: number of the batch.
            rows: number of its rows.
            loss: mean loss over the rows.
            correct: number of correct predictions.
            predictions: number of predictions.
            residual: residual between eta and delta; None for a batch that was not reconciled.
            further: by name, each metric summed over the predictions and each figure averaged over the
                rows; figures may be omitted, as in evaluations.
        """
        sums = [correct.double(), rows * loss.double()]
        fine = torch.isfinite(loss)
        if residual is not None:
            means = (residual.distance, residual.cosine, residual.relative)
            sums += [rows * mean.double() for mean in means]
            fine &= torch.isfinite(residual.distance)
        self._sums[:, : len(sums)] += torch.stack(sums)
        if further:
            more = [further[name].double() for name in self._metrics]
            more += [rows * further[name].double() for name in self._figures if name in further]
            self._sums[:, MEANS : MEANS + len(more)] += torch.stack(more)
        for window in range(len(self.rows)):
            self.rows[window] += rows
            self._predictions[window] += predictions
            self._reconciled_rows[window] += 0 if residual is None else rows
        self._first_bad.masked_fill_(~fine & (self._first_bad < 0), batch)

    def state_dict(self) -> Tensor | None:
        """Return the sums of all replicas, float64 ``[replicas, windows, columns]``; None without batches."""
        sums = self._each(self._own())
        return sums if sums.any() else None

    def load_state_dict(self, state: Tensor | None, *, replica: int = 0, replicas: int = 1) -> None:
        """Load a :meth:`state_dict`.

        If the number of replicas has changed, the first one takes the sums of all.
        """
        if state is None:
            return
        if len(state) == replicas:
            own = state[replica]
        else:
            own = state.sum(0) if replica == 0 else torch.zeros_like(state[0])
        self._sums.copy_(own[:, : self._sums.shape[1]])
        counts = own[:, self._sums.shape[1] :].T.to(torch.int64).tolist()
        self.rows, self._predictions, self._reconciled_rows = counts

    def _own(self) -> Tensor:
        counts = [self.rows, self._predictions, self._reconciled_rows]
        return torch.cat([self._sums.cpu(), torch.tensor(counts, dtype=torch.float64).T], dim=1)

    def first_bad_batch(self) -> int | None:
        """Return the number of the first batch with a non-finite loss or distance; waits for the device."""
        batch = int(self._first_bad.item())
        return None if batch < 0 else batch

    def read_and_reset(self, window: int = 0) -> Reading:
        """Return the means since the last reset of a window, and reset it; waits for the device."""
        sums = self._each(self._own()[window]).sum(0)
        *means, rows, predictions, reconciled = sums.tolist()
        correct, loss, *residual = means[:MEANS]
        metrics, figures = means[MEANS:][: len(self._metrics)], means[MEANS:][len(self._metrics) :]
        further = _means(self._metrics, metrics, predictions)
        further |= _means(self._figures, figures, rows)
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
            further=further,
        )


def _means(names: Sequence[str], sums: Sequence[float], count: float) -> dict[str, float | None]:
    return {name: total / count if count else None for name, total in zip(names, sums, strict=True)}
