"""Shows a run to the user: one row for each stage, and the overall progress.

On a terminal a table is redrawn in place (`live_table`), and so is an output of a notebook's cell
(`notebook`); elsewhere, as in a log file or a batch job, a few lines are written at intervals
(`plain_lines`). `make_view` chooses. Always close a
view, or the terminal's cursor stays hidden::

    with contextlib.closing(make_view(sys.stderr)) as view:
        view.start("resnet110 in 4 stages")
        ...
        view.update(rows, progress)
"""

import os
from collections.abc import Sequence
from typing import Protocol, TextIO

from rich.console import Console

from pipelocal.telemetry.live_table import LiveView
from pipelocal.telemetry.notebook import NotebookView, notebook_display
from pipelocal.telemetry.plain_lines import PlainView
from pipelocal.telemetry.progress import Progress, StageRow


class View(Protocol):
    """Shows the run to the user."""

    def start(self, title: str) -> None:
        """Show the title and prepare for updates."""

    def update(self, rows: Sequence[StageRow], progress: Progress) -> None:
        """Take the newest figures; cheap enough to be called at each step."""

    def message(self, text: str) -> None:
        """Show a permanent line."""

    def close(self) -> None:
        """Show the last figures and restore the terminal. A second call does nothing."""


def make_view(stream: TextIO, *, plain: bool | None = None) -> View:
    """Make the view for ``stream``: live on a terminal or in a notebook, otherwise or on request plain.

    rich decides about colours, and so honours ``NO_COLOR``.
    """
    if not plain and (display := notebook_display(stream)) is not None:
        return NotebookView(stream, display)
    if plain or not stream.isatty() or os.environ.get("TERM") == "dumb":
        return PlainView(stream)
    console = Console(file=stream)
    # rich knows more reasons not to redraw, e.g. TTY_INTERACTIVE=0.
    return LiveView(console) if console.is_interactive else PlainView(stream)
