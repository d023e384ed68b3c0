"""What the user sees while training runs: one row for each stage and the overall progress.

On a terminal a table is redrawn in place (`LiveView`); elsewhere, as in a log file or a batch
job, a few lines are written now and then (`PlainView`). `make_view` chooses. Close a view
whatever happens, or the terminal keeps its cursor hidden::

    with contextlib.closing(make_view(sys.stderr)) as view:
        view.start("resnet110 in 4 stages")
        ...
        view.update(rows, progress)
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

UNKNOWN = "-"
"""Shown for a figure that has not been measured."""

Clock = Callable[[], float]
"""Seconds that only grow, from any origin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """What one stage last reported. None is "not known (yet)"."""

    stage: int
    """Number of the stage, from 1."""
    rank: int | str
    """Rank that runs it, from 0; of several replicas, such as ``1,2``."""
    units: str
    """Which units of the model it holds, e.g. ``stem..block1``."""
    step: int = 0
    """Batches it has trained on."""
    loss: float | None = None
    """Local training loss."""
    accuracy: float | None = None
    """Share of right answers in training, 0 to 1."""
    eval_accuracy: float | None = None
    """Share of right answers in the last evaluation, 0 to 1."""
    samples_per_second: float | None = None
    busy_fraction: float | None = None
    """Share of the time in which it computed and did not wait, 0 to 1."""
    peak_memory_bytes: int | None = None
    frozen: bool = False
    """It no longer trains, and only feeds the next one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far the whole run is."""

    step: int
    """Batches done, of ``total_steps``."""
    total_steps: int
    epoch: int
    """The epoch that runs now, from 1 to ``epochs``."""
    epochs: int
    phase: str
    """``train`` or ``eval``."""
    elapsed_s: float
    """Seconds since this process began, at ``first_step``."""
    first_step: int = 0
    """The step this process began at; not 0 in a run that was resumed."""

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the mean rate so far; None before there is a rate."""
        steps_left = self.total_steps - self.step
        if steps_left <= 0:
            return 0.0
        steps_done = self.step - self.first_step
        if steps_done <= 0 or self.elapsed_s <= 0:
            return None
        return self.elapsed_s / steps_done * steps_left


class View(Protocol):
    """A place that shows the run to the user."""

    def start(self, title: str) -> None:
        """Show the title and make ready for updates."""

    def update(self, rows: Sequence[StageRow], progress: Progress) -> None:
        """Take the newest figures; cheap enough to be called at each step."""

    def message(self, text: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Show the last figures and give the terminal back. A second call does nothing."""


class LiveView:
    """A table redrawn in place, at most every ``min_interval_s`` seconds and without a thread."""

    def __init__(
        self, console: Console, *, min_interval_s: float = 0.25, clock: Clock = time.monotonic
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
            # What others print appears above the table; what goes to a file or pipe still does.
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
            live.stop()  # draws once more, now with every row, and shows the cursor in any case

    def _render(self) -> RenderableType:
        if self._progress is None:
            return ""
        width, height = self._console.size
        other_lines = 5  # header, rule, blank, progress, and the line the cursor is left on
        is_final = self._live is None
        table = stage_table(
            self._rows, width=width, max_rows=None if is_final else height - other_lines
        )
        return Group(table, "", _progress_bar(self._progress))


class PlainView:
    """Lines for a log: a block at most every ``min_interval_s`` seconds, and one at the end of
    each epoch."""

    def __init__(
        self,
        stream: TextIO,
        *,
        min_interval_s: float = 10.0,
        width: int = 100,
        clock: Clock = time.monotonic,
    ) -> None:
        self._stream = stream
        self._min_interval_s = min_interval_s
        self._width = width
        self._clock = clock
        self._next_block = float("-inf")
        self._last: Progress | None = None
        self._unwritten: tuple[Sequence[StageRow], Progress] | None = None

    def start(self, title: str) -> None:
        self.close()
        self._last = None
        self._next_block = float("-inf")
        self.message(title)

    def update(self, rows: Sequence[StageRow], progress: Progress) -> None:
        last, self._last = self._last, progress
        if last is not None and last.epoch != progress.epoch:
            self._write_block()  # the last figures of the epoch that has just ended
        self._unwritten = (tuple(rows), progress)
        if self._clock() >= self._next_block:
            self._write_block()

    def message(self, text: str) -> None:
        self._write([text])

    def close(self) -> None:
        self._write_block()

    def _write_block(self) -> None:
        """Write the newest figures, unless they have been written."""
        block, self._unwritten = self._unwritten, None
        if block is None:
            return
        rows, progress = block
        self._next_block = self._clock() + self._min_interval_s
        stages = _pack((_stage_text(row) for row in rows), width=self._width - 2)
        self._write([_progress_text(progress), *(f"  {line}" for line in stages)])

    def _write(self, lines: Sequence[str]) -> None:
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()


def make_view(stream: TextIO, *, plain: bool | None = None) -> View:
    """The view that suits ``stream``: live on a terminal, else plain, and plain if asked for.

    rich decides on colours, and so honours ``NO_COLOR``.
    """
    if plain or not stream.isatty() or os.environ.get("TERM") == "dumb":
        return PlainView(stream)
    console = Console(file=stream)
    # rich knows more reasons not to redraw, e.g. TTY_INTERACTIVE=0.
    return LiveView(console) if console.is_interactive else PlainView(stream)


def stage_table(
    rows: Sequence[StageRow], *, width: int | None = None, max_rows: int | None = None
) -> Table:
    """A table with a row for each stage.

    Args:
        rows: The stages, first to last.
        width: Terminal columns at hand; where they are few the least needed columns are left
            out. None shows all.
        max_rows: Terminal lines at hand for the rows; where they are too few the last stage is
            kept (it is the model's own output) and "..." stands for those left out.
    """
    with_bar = width is None or width >= 100
    with_units = width is None or width >= 72
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
    for name in ("loss", "accuracy", "eval acc.", "samples/s", "busy", "memory"):
        table.add_column(name, justify="right", no_wrap=True, overflow="crop")
        if name == "busy" and with_bar:
            table.add_column("", width=_BUSY_BAR_WIDTH)

    first, last = _head_and_tail(rows, max_rows)
    for row in first:
        table.add_row(*_cells(row, with_units=with_units, with_bar=with_bar))
    if len(first) + len(last) < len(rows):
        table.add_row("...")
    for row in last:
        table.add_row(*_cells(row, with_units=with_units, with_bar=with_bar))
    return table


def format_bytes(count: float) -> str:
    """Bytes with a binary unit: ``512 B``, ``1.5 KiB``, ``812 MiB``, ``23.4 GiB``."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1023.5 and len(units) > 1:
        count /= 1024
        del units[0]
    digits = 0 if units[0] == "B" or count >= 99.95 else 1
    return f"{count:.{digits}f} {units[0]}"


def format_seconds(seconds: float) -> str:
    """A duration: ``12.3 s``, ``2 min 05 s``, ``1 h 02 min``, ``3 d 04 h``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    if seconds < 86400 - 30:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours:02d} h"


_BUSY_BAR_WIDTH = 8


def _head_and_tail(
    rows: Sequence[StageRow], max_rows: int | None
) -> tuple[Sequence[StageRow], Sequence[StageRow]]:
    """The rows to show before and after the "..."; all of them before it where they fit."""
    if max_rows is None or len(rows) <= max(max_rows, 2):
        return rows, ()
    return rows[: max(max_rows - 2, 0)], rows[-1:]


def _cells(row: StageRow, *, with_units: bool, with_bar: bool) -> Iterator[RenderableType]:
    yield f"{row.stage}*" if row.frozen else str(row.stage)
    if with_units:
        yield str(row.rank)
        yield Text(row.units)  # not markup: a name may hold brackets
    yield _or_unknown(_format_loss, row.loss)
    yield _or_unknown("{:.1%}".format, row.accuracy)
    yield _or_unknown("{:.1%}".format, row.eval_accuracy)
    yield _or_unknown(_format_rate, row.samples_per_second)
    yield _or_unknown("{:.0%}".format, row.busy_fraction)
    if with_bar:
        yield "" if row.busy_fraction is None else _bar(row.busy_fraction, width=_BUSY_BAR_WIDTH)
    yield _or_unknown(format_bytes, row.peak_memory_bytes)


def _or_unknown(format_figure: Callable[[float], str], figure: float | None) -> str:
    return UNKNOWN if figure is None else format_figure(figure)


def _format_loss(loss: float) -> str:
    return f"{loss:.3f}" if abs(loss) < 1000 else f"{loss:.1e}"


def _format_rate(per_second: float) -> str:
    return f"{per_second:.1f}" if per_second < 99.95 else f"{per_second:.0f}"


def _bar(fraction: float, *, width: int | None = None) -> ProgressBar:
    """A bar filled to ``fraction``; without a width it takes the room there is."""
    return ProgressBar(
        total=1.0, completed=fraction, width=width, complete_style="cyan", finished_style="cyan"
    )


def _progress_text(progress: Progress) -> str:
    """For example ``step 120/230  epoch 2/10  12.3 s left``."""
    parts = [
        f"step {progress.step}/{progress.total_steps}",
        f"epoch {progress.epoch}/{progress.epochs}",
    ]
    if progress.phase != "train":
        parts.append(progress.phase)
    seconds_left = progress.eta_s
    if seconds_left == 0:
        parts.append(f"{format_seconds(progress.elapsed_s)} elapsed")
    elif seconds_left is not None:
        parts.append(f"{format_seconds(seconds_left)} left")
    return "  ".join(parts)


def _progress_bar(progress: Progress) -> Table:
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, overflow="crop")
    line.add_row(_bar(progress.step / max(progress.total_steps, 1)), Text(_progress_text(progress)))
    return line


def _stage_text(row: StageRow) -> str:
    """For example ``1: loss 0.312 acc 0.912``; what is not known is left out."""
    figures = []
    if row.loss is not None:
        figures.append(f"loss {_format_loss(row.loss)}")
    if row.accuracy is not None:
        figures.append(f"acc {row.accuracy:.3f}")
    if row.eval_accuracy is not None:
        figures.append(f"eval {row.eval_accuracy:.3f}")
    frozen = " frozen" if row.frozen else ""
    return f"{row.stage}{frozen}: {' '.join(figures) or UNKNOWN}"


def _pack(items: Iterable[str], *, width: int) -> Iterator[str]:
    """Lines of items with " | " between them; an item is never cut."""
    line = ""
    for item in items:
        longer = f"{line} | {item}" if line else item
        if line and len(longer) > width:
            yield line
            line = item
        else:
            line = longer
    if line:
        yield line
