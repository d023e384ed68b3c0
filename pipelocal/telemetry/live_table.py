"""The table that a terminal shows while training runs: a row for each stage, redrawn in place."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelocal.telemetry.formats import (
    format_bytes,
    format_figure,
    format_loss,
    format_rate,
    or_unknown,
    short_name,
)
from pipelocal.telemetry.progress import Progress, StageRow, progress_text

_BUSY_BAR_WIDTH = 8
_UNITS_FROM, _BUSY_BAR_FROM = 72, 100
"""Terminal columns from which on there is room for the units, and for bars."""
_KEPT = ("loss", "eval", "metric", "busy", "samples/s", "memory")
"""Figures in the order in which a narrow terminal has room for them."""
_WIDTHS = {"loss": 7, "busy": 4, "samples/s": 9, "memory": 8}
"""Columns that a figure takes at most; a metric takes its name's."""
_BESIDE_FURTHER = 36
"""Columns that rank, units and bar want before there is room for further figures."""


class LiveView:
    """A table redrawn in place, at most every ``min_interval_s`` seconds and without a thread."""

    def __init__(
        self,
        console: Console,
        *,
        min_interval_s: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._min_interval_s = min_interval_s
        self._clock = clock
        self._live: Live | None = None
        self._rows: Sequence[StageRow] = ()
        self._progress: Progress | None = None
        self._next_draw = float("-inf")

    def start(self, title: str) -> None:
        self.close()
        self._rows, self._progress = (), None
        self._next_draw = float("-inf")
        self.message(title)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            get_renderable=self._render,
            # Other output appears above the table; output to a file or pipe is not redirected.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
        )
        self._live.start()

    def update(self, rows: Sequence[StageRow], progress: Progress) -> None:
        self._rows, self._progress = tuple(rows), progress
        now = self._clock()
        if self._live is not None and now >= self._next_draw:
            self._next_draw = now + self._min_interval_s
            self._live.refresh()

    def message(self, text: str) -> None:
        # Not markup, so that "[0]" is kept. Not wrapped, so that a path can be copied; rich joins
        # bare texts into one that wraps, hence the group.
        line = Text(text, no_wrap=True, overflow="ignore")
        self._console.print(Group(line), crop=False)

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()  # draws a last time with every row, and always shows the cursor

    def _render(self) -> RenderableType:
        if self._progress is None:
            return ""
        width, height = self._console.size
        other_lines = 5  # header, rule, blank, progress, and the line the cursor is left on
        is_final = self._live is None
        room = None if is_final else height - other_lines
        return whole_view(self._rows, self._progress, width=width, max_rows=room)


def whole_view(
    rows: Sequence[StageRow], progress: Progress, *, width: int, max_rows: int | None = None
) -> RenderableType:
    """Build the table of the stages with the run's progress below, as :func:`stage_table` says."""
    table = stage_table(rows, metric=progress.metric, width=width, max_rows=max_rows)
    return Group(table, "", _progress_bar(progress, width))


def stage_table(
    rows: Sequence[StageRow],
    *,
    metric: str = "accuracy",
    width: int | None = None,
    max_rows: int | None = None,
) -> Table:
    """Build a table with a row for each stage.

    Args:
        rows: The stages, first to last.
        metric: Name of the task's first metric.
        width: Available terminal columns; if there are few, the least important columns are left
            out, so that those that stay are whole. None shows all.
        max_rows: Available terminal lines for the rows; if there are too few, the last stage is
            kept (it is the model's own output) and "..." stands for omitted rows.

    Further figures of the stages have columns between the evaluation and the rate.
    """
    with_bar = width is None or width >= _BUSY_BAR_FROM
    with_units = width is None or width >= _UNITS_FROM
    further = dict.fromkeys(heading for row in rows for heading in row.further)
    figures = ("loss", "metric", "eval", *further, "samples/s", "busy", "memory")
    names = {name: name for name in figures}
    names |= {"metric": metric, "eval": f"eval {short_name(metric)}"}
    shown = _fitting(names, width)
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0) if with_bar else 0,
        header_style="bold",
    )
    # A star stands for "frozen".
    table.add_column("stage", justify="right", no_wrap=True, overflow="crop")
    if with_units:
        table.add_column("rank", justify="right", no_wrap=True, overflow="crop")
        table.add_column("units", no_wrap=True, overflow="crop")
    for name in shown:
        table.add_column(names[name], justify="right", no_wrap=True, overflow="crop")
        if name == "busy" and with_bar:
            table.add_column("", width=_BUSY_BAR_WIDTH)

    first, last = _head_and_tail(rows, max_rows)
    for row in first:
        table.add_row(*_cells(row, shown, with_units=with_units, with_bar=with_bar))
    if len(first) + len(last) < len(rows):
        table.add_row("...")
    for row in last:
        table.add_row(*_cells(row, shown, with_units=with_units, with_bar=with_bar))
    return table


def _head_and_tail(
    rows: Sequence[StageRow], max_rows: int | None
) -> tuple[Sequence[StageRow], Sequence[StageRow]]:
    """Return the rows to show before and after the "..."; all of them before it if they fit."""
    if max_rows is None or len(rows) <= max(max_rows, 2):
        return rows, ()
    return rows[: max(max_rows - 2, 0)], rows[-1:]


def _fitting(names: dict[str, str], width: int | None) -> list[str]:
    """Return the figures that fit beside the stage's number, in the order of ``names``.

    Args:
        names: each figure's heading.
        width: available terminal columns; None for any number.
    """
    left = float("inf") if width is None else width - len("stage")
    kept: set[str] = set()
    for name in (*_KEPT, *(name for name in names if name not in _KEPT)):
        left -= 1 + max(_WIDTHS.get(name, 5), len(names[name]))
        reserved = 0 if name in _KEPT else _BESIDE_FURTHER
        if left < reserved and kept:
            break
        kept.add(name)
    return [name for name in names if name in kept]


def _cells(
    row: StageRow, shown: Sequence[str], *, with_units: bool, with_bar: bool
) -> Iterator[RenderableType]:
    yield f"{row.stage}*" if row.frozen else str(row.stage)
    if with_units:
        yield str(row.rank)
        yield Text(row.units)  # not markup: a name may hold brackets
    figures = {
        "loss": or_unknown(format_loss, row.loss),
        "metric": or_unknown(format_figure, row.metric),
        "eval": or_unknown(format_figure, row.eval_metric),
        "samples/s": or_unknown(format_rate, row.samples_per_second),
        "busy": or_unknown("{:.0%}".format, row.busy_fraction),
        "memory": or_unknown(format_bytes, row.peak_memory_bytes),
    }
    for name in shown:
        yield figures.get(name) or or_unknown(format_figure, row.further.get(name))
        if name == "busy" and with_bar:
            known = row.busy_fraction is not None
            yield _bar(row.busy_fraction or 0.0, width=_BUSY_BAR_WIDTH) if known else ""


def _bar(fraction: float, *, width: int | None = None) -> ProgressBar:
    """Build a bar filled to ``fraction``; without a width it takes the available space."""
    return ProgressBar(
        total=1.0, completed=fraction, width=width, complete_style="cyan", finished_style="cyan"
    )


def _progress_bar(progress: Progress, width: int) -> RenderableType:
    text = progress_text(progress, width=width)
    if len(text) < width - _BUSY_BAR_WIDTH:
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True, overflow="crop")
        line.add_row(_bar(progress.step / max(progress.total_steps, 1)), Text(text))
        return line
    return Text(text, no_wrap=True, overflow="crop")
