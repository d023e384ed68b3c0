"""Plain output for log files while training runs: a block of lines at intervals."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

from pipelocal.telemetry.formats import UNKNOWN, format_figure, format_loss, or_unknown, short_name
from pipelocal.telemetry.progress import Progress, StageRow, progress_text


class PlainView:
    """Lines for a log: a block at most every ``min_interval_s`` seconds, and one at the end of
    each epoch."""

    def __init__(
        self,
        stream: TextIO,
        *,
        min_interval_s: float = 10.0,
        width: int = 100,
        clock: Callable[[], float] = time.monotonic,
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
        """Write the newest figures, unless they were already written."""
        block, self._unwritten = self._unwritten, None
        if block is None:
            return
        rows, progress = block
        self._next_block = self._clock() + self._min_interval_s
        stages = _pack((_stage_text(row, progress.metric) for row in rows), width=self._width - 2)
        self._write([progress_text(progress), *(f"  {line}" for line in stages)])

    def _write(self, lines: Sequence[str]) -> None:
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()


def _stage_text(row: StageRow, metric: str) -> str:
    """Format a row such as ``1: loss 0.312 acc 0.912``; unknown figures are left out."""
    figures = []
    if row.loss is not None:
        figures.append(f"loss {format_loss(row.loss)}")
    if row.metric is not None:
        figures.append(f"{short_name(metric)} {format_figure(row.metric)}")
    if row.eval_metric is not None:
        figures.append(f"eval {format_figure(row.eval_metric)}")
    figures += [f"{name} {or_unknown(format_figure, value)}" for name, value in row.further.items()]
    frozen = " frozen" if row.frozen else ""
    return f"{row.stage}{frozen}: {' '.join(figures) or UNKNOWN}"


def _pack(items: Iterable[str], *, width: int) -> Iterator[str]:
    """Yield lines of items joined by " | "; items are never broken."""
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
