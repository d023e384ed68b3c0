"""Sums of a stage's metrics, kept on the device until they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Self

import torch
from torch import Tensor

from pipelocal.errors import UserError
from pipelocal.objective.residual import Residual
from pipelocal.tasks import Loss, Sums, Task

RESIDUAL = ("distance", "cosine", "relative", "cap")
"""Figures of a :class:`~pipelocal.objective.residual.Residual`, in the order of their columns."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a task's sums, by name."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Means over the batches that a tally has added; None without any."""

    rows: int
    loss: float | None
    metrics: dict[str, float | None]
    """The task's metrics; None where one is not defined."""
    reconciliation: float | None = None
    """Mean distance between eta and delta over the rows that were reconciled; None without any."""
    cosine: float | None = None
    """Mean cosine between the two, over the same rows."""
    residual: float | None = None
    """Mean relative length of their difference, over the same rows."""
    cap: float | None = None
    """Mean cap of the cosine, over the same rows; None where the features have no places."""
    figures: dict[str, float | None] = field(default_factory=dict)
    """The objective's figures, as means over the rows."""

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Self:
        """Return a reading that a snapshot holds; earlier versions knew only accuracy."""
        values = dict(state)
        if "metrics" not in values:
            values["metrics"] = {"accuracy": values.pop("accuracy")}
            values["figures"] = values.pop("further")
        return cls(**values)


class Layout:
    """The columns of a tally: loss, weight, the task's scalars, those of the residual, and the rest.

    Args:
        shapes: of the task's sums.
        figures: names of the objective's figures.
    """

    def __init__(self, shapes: Shapes, figures: Sequence[str]) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.scalars = [name for name, shape in self.shapes.items() if not shape]
        self.residual = 2 + len(self.scalars)
        self.figures = self.residual + len(RESIDUAL)
        self.width = self.figures + len(figures)
        self.places = {name: 2 + place for place, name in enumerate(self.scalars)}
        for name, shape in self.shapes.items():
            if shape:
                self.places[name] = self.width
                self.width += prod(shape)

    def columns(self, name: str) -> slice:
        """Return the columns of one of the task's sums."""
        start = self.places[name]
        return slice(start, start + prod(self.shapes[name]))

    def named(self, values: Tensor) -> dict[str, Tensor]:
        """Return what the task's figures are made of, from the columns ``[width]``."""
        found = {
            name: values[self.columns(name)].view(shape) for name, shape in self.shapes.items()
        }
        return {"loss": values[0], "weight": values[1], **found}


class Tally:
    """Adds up loss, a task's sums and residuals, without reading the device.

    Args:
        device: where the sums live; reading them waits for that device, adding does not.
        task: makes figures of its sums.
        shapes: shapes of the task's sums; None to learn them from the first batch, which replicas cannot,
            since one may have none.
        windows: number of sums kept over the same batches, each reset on its own.
        figures: names of the objective's figures.
        each: gathers this tally's values from all replicas, ``[replicas, ...]``; they all read at
            the same time.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        task: Task,
        shapes: Shapes | None = None,
        windows: int = 1,
        figures: Sequence[str] = (),
        each: Callable[[Tensor], Tensor] = lambda values: values.unsqueeze(0),
    ) -> None:
        self._task = task
        self._each = each
        self._figures = tuple(figures)
        self._zero = torch.zeros((), dtype=torch.float64, device=device)
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.rows = [0] * windows
        """Number of rows in each window since its last reset."""
        self._reconciled_rows = [0] * windows
        self._numbers: list[dict[int, float]] = [{} for _ in range(windows)]
        """Sums of what is known without reading the device, by column."""
        self._knows_shapes = shapes is not None
        self._lay_out(shapes or {})

    def add(
        self,
        *,
        batch: int,
        rows: int,
        loss: Loss,
        sums: Sums,
        residual: Residual | None = None,
        figures: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add one batch.

        Args:
            batch: number of the batch.
            rows: number of its rows.
            loss: of the batch.
            sums: the task's sums.
            residual: residual between eta and delta; None for a batch that was not reconciled.
            figures: the objective's figures by name, each a mean over the rows; None in evaluations.
        """
        if not self._knows_shapes:
            self._learn(sums)
        layout = self._layout
        mean = loss.mean.detach() if loss.mean.requires_grad else loss.mean
        fine = torch.isfinite(mean)
        values = [loss.weight * mean.double(), self._on_device(1, loss.weight)]
        values += [self._on_device(layout.places[name], sums[name]) for name in layout.scalars]
        if residual is not None:
            values += [rows * getattr(residual, name).double() for name in RESIDUAL]
            fine &= torch.isfinite(residual.distance)
        self._sums[:, : len(values)] += torch.stack(values)
        if figures:
            more = torch.stack([rows * figures[name].double() for name in self._figures])
            self._sums[:, layout.figures : layout.figures + len(more)] += more
        if len(layout.scalars) < len(layout.shapes):
            for name, shape in layout.shapes.items():
                if shape:
                    self._sums[:, layout.columns(name)] += torch.as_tensor(sums[name]).flatten()
        for window in range(len(self.rows)):
            self.rows[window] += rows
            self._reconciled_rows[window] += 0 if residual is None else rows
        self._first_bad.masked_fill_(~fine & (self._first_bad < 0), batch)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the shapes, and the sums of all replicas, float64 ``[replicas, windows, columns]``.

        Without batches it is None.
        """
        sums = self._each(self._own())
        shapes = {name: list(shape) for name, shape in self._layout.shapes.items()}
        return {"shapes": shapes, "sums": sums} if sums.any() else None

    def load_state_dict(
        self, state: dict[str, Any] | Tensor | None, *, replica: int = 0, replicas: int = 1
    ) -> None:
        """Load a :meth:`state_dict`, or what an earlier version had in its place.

        If the number of replicas has changed, the first one takes the sums of all.
        """
        if state is None:
            return
        if isinstance(state, Tensor):
            state = _of_earlier_version(state, self._task.metrics, self._figures)
        shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}
        if not self._knows_shapes:
            self._lay_out(shapes)
            self._knows_shapes = True
        elif shapes != self._layout.shapes:
            return  # the task's code has changed, as the user accepted: its figures begin anew
        sums: Tensor = state["sums"]
        if sums.shape[-1] == self._layout.width + 1:  # of a version that knew no cap
            before, after = sums.tensor_split([self._layout.figures - 1], dim=-1)
            sums = torch.cat([before, torch.full_like(before[..., :1], math.nan), after], dim=-1)
        if len(sums) == replicas:
            own = sums[replica]
        else:
            own = sums.sum(0) if replica == 0 else torch.zeros_like(sums[0])
        self._sums.copy_(own[:, : self._layout.width])
        counts = own[:, self._layout.width :].T.to(torch.int64).tolist()
        self.rows, self._reconciled_rows = counts

    def first_bad_batch(self) -> int | None:
        """Return the number of the first batch with a non-finite loss or distance; waits for the device."""
        batch = int(self._first_bad.item())
        return None if batch < 0 else batch

    def read_and_reset(self, window: int = 0) -> Reading:
        """Return the means since the last reset of a window, and reset it; waits for the device.

        Raises:
            UserError: the task's figures are not those that it announces.
        """
        sums = self._each(self._own()[window]).sum(0)
        layout = self._layout
        rows, reconciled = sums[layout.width :].tolist()
        loss, weight = sums[:2].tolist()
        residual = sums[layout.residual : layout.figures].tolist()
        figures = sums[layout.figures : layout.figures + len(self._figures)].tolist()
        self._sums[window].zero_()
        self._numbers[window].clear()
        self.rows[window] = self._reconciled_rows[window] = 0
        distance, cosine, relative, cap = (
            None if not reconciled or math.isnan(value) else value / reconciled
            for value in residual
        )
        return Reading(
            rows=int(rows),
            loss=loss / weight if weight else None,
            metrics=self._metrics(layout.named(sums) if weight else None),
            reconciliation=distance,
            cosine=cosine,
            residual=relative,
            cap=cap,
            figures={
                name: total / rows if rows else None
                for name, total in zip(self._figures, figures, strict=True)
            },
        )

    def _metrics(self, sums: Mapping[str, Tensor] | None) -> dict[str, float | None]:
        """Return the task's metrics; None where nothing counted, or one is not defined."""
        names = self._task.metrics
        found: Mapping[str, float] = {} if sums is None else self._task.figures(sums)
        if sums is not None and found.keys() != set(names):
            raise UserError(
                f"the task {type(self._task).__name__} gives the figures {sorted(found)}, and announces "
                f"{sorted(names)} as its metrics: make both the same"
            )
        values = {name: float(found.get(name, math.nan)) for name in names}
        return {name: None if math.isnan(value) else value for name, value in values.items()}

    def _learn(self, sums: Sums) -> None:
        self._lay_out({n: tuple(s.shape) if isinstance(s, Tensor) else () for n, s in sums.items()})
        self._knows_shapes = True

    def _lay_out(self, shapes: Shapes) -> None:
        """Begin with sums of these shapes."""
        self._layout = Layout(shapes, self._figures)
        size = (len(self.rows), self._layout.width)
        self._sums = torch.zeros(size, dtype=torch.float64, device=self._zero.device)

    def _on_device(self, column: int, value: Tensor | float) -> Tensor:
        """Return a scalar for its column; a plain number is added apart, and 0 in its place."""
        if isinstance(value, Tensor):
            return value.detach().double()
        for numbers in self._numbers:
            numbers[column] = numbers.get(column, 0.0) + value
        return self._zero

    def _own(self) -> Tensor:
        sums = self._sums.cpu()
        counts = torch.tensor([self.rows, self._reconciled_rows], dtype=torch.float64).T
        own = torch.cat([sums, counts], dim=1)
        for window, numbers in enumerate(self._numbers):
            for column, number in numbers.items():
                own[window, column] += number
        return own


def _of_earlier_version(
    state: Tensor, metrics: Sequence[str], figures: Sequence[str]
) -> dict[str, Any]:
    """Return the state that an earlier version's sums stand for; it knew only classification.

    Its columns: correct predictions, the loss times the rows, the residual, the further metrics, the
    objective's figures; numbers of rows, predictions and reconciled rows.
    """
    correct, loss, *rest = state.unbind(-1)
    *rest, rows, predictions, reconciled = rest
    residual, further, others = (
        [*rest[:3], torch.full_like(loss, math.nan)],
        rest[3 : 2 + len(metrics)],
        rest[2 + len(metrics) :],
    )
    names = ["predictions", *metrics]
    layout = Layout(dict.fromkeys(names, ()), figures)
    per_row = predictions / rows.clamp_min(1)
    columns = [loss * per_row, predictions, predictions, correct, *further, *residual, *others]
    assert len(columns) == layout.width
    return {
        "shapes": {name: [] for name in names},
        "sums": torch.stack([*columns, rows, reconciled], dim=-1),
    }
