"""Event files for TensorBoard, in the run's folder."""

from __future__ import annotations

from typing import Any

from pipelocal.loggers.logger import LoggedRun, Record, numbers, step_of
from pipelocal.loggers.packages import load

OWN = ".pipelocal"
"""Ends the names of the event files that this logger has written."""

FLUSH_S = 2
"""Seconds after which a figure is in the file."""


class TensorBoard:
    """Writes scalars such as ``loss/stage-1`` over training batches.

    Raises:
        UserError: TensorBoard is not installed.
    """

    needs_folder = True

    def __init__(self) -> None:
        self._make = load("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer: Any = None

    def start(self, run: LoggedRun) -> None:
        """Begin a new event file: all records of the run come again.

        A TensorBoard that is watching forgets what it has read, as ``purge_step`` tells it.
        """
        assert run.folder is not None
        folder = run.folder / "tensorboard"
        for file in folder.glob(f"events.out.tfevents.*{OWN}"):
            file.unlink()
        self._writer = self._make(
            str(folder), purge_step=0, flush_secs=FLUSH_S, filename_suffix=OWN
        )
        text = "".join(f"    {name} = {value}\n" for name, value in run.options.items())
        self._writer.add_text("options", f"{run.title}\n\n{text}")

    def record(self, record: Record) -> None:
        """Add every number of a record."""
        step = step_of(record)
        for name, value in numbers(record).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
