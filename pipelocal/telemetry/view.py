"""What the user sees while training runs: one row for each stage and the overall progress.

On a terminal a table is redrawn in place (`live_table`); elsewhere, as in a log file or a batch
job, a few lines are written now and then (`plain_lines`). `make_view` chooses. Close a view
whatever happens, or the terminal keeps its cursor hidden::

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
from pipelocal.telemetry.plain_lines import PlainView
from pipelocal.telemetry.progress import Progress, StageRow


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


def make_view(stream: TextIO, *, plain: bool | None = None) -> View:
    """The view that suits ``stream``: live on a terminal, else plain, and plain if asked for.

    rich decides on colours, and so honours ``NO_COLOR``.
    """
    if plain or not stream.isatty() or os.environ.get("TERM") == "dumb":
        return PlainView(stream)
    console = Console(file=stream)
    # rich knows more reasons not to redraw, e.g. TTY_INTERACTIVE=0.
    return LiveView(console) if console.is_interactive else PlainView(stream)
