"""The table in a notebook: one output of the cell, which is rewritten."""

import io
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TextIO

from rich.console import Console

from pipelocal.telemetry.live_table import whole_view
from pipelocal.telemetry.progress import Progress, StageRow

WIDTH = 100
PRE = '<pre style="white-space:pre;overflow-x:auto;line-height:normal">{code}</pre>'


class NotebookView:
    """The terminal's table as an output that Jupyter and its kin update; without a widget.

    Args:
        stream: the cell's standard output, for permanent lines.
        display: IPython's function of that name.
        min_interval_s: seconds between two updates, at least.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        display: Callable[..., Any],
        *,
        min_interval_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._display = display
        self._min_interval_s = min_interval_s
        self._clock = clock
        self._shown: Any = None
        self._unshown: tuple[Sequence[StageRow], Progress] | None = None
        self._next = float("-inf")

    def start(self, title: str) -> None:
        self.close()
        self._next = float("-inf")
        self.message(title)
        # Here, on the cell's own thread, so that it is this cell's output.
        self._shown = self._display({"text/plain": "", "text/html": ""}, raw=True, display_id=True)

    def update(self, rows: Sequence[StageRow], progress: Progress) -> None:
        self._unshown = (tuple(rows), progress)
        if self._clock() >= self._next:
            self._next = self._clock() + self._min_interval_s
            self._draw()

    def message(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        self._draw()
        self._shown = None

    def _draw(self) -> None:
        latest, self._unshown = self._unshown, None
        if latest is not None and self._shown is not None:
            self._shown.update(as_mime(*latest), raw=True)


def as_mime(rows: Sequence[StageRow], progress: Progress) -> dict[str, str]:
    """Return the table as text and as HTML, by MIME type."""
    console = Console(
        file=io.StringIO(),
        width=WIDTH,
        record=True,
        force_jupyter=False,
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(whole_view(rows, progress, width=WIDTH))
    text = console.export_text(clear=False)
    return {
        "text/plain": "\n".join(line.rstrip() for line in text.splitlines()),
        "text/html": console.export_html(inline_styles=True, code_format=PRE),
    }


def notebook_display(stream: TextIO) -> Callable[..., Any] | None:
    """Return IPython's ``display`` where ``stream`` is the output of a notebook's cell, otherwise None."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if getattr(shell, "kernel", None) is None or "stdout" not in str(getattr(stream, "name", "")):
        return None
    display: Callable[..., Any] = import_module("IPython.display").display
    return display
