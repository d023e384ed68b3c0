"""Rank 0's part of telemetry: collects, stores and shows the records of all stages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelocal.loggers.feed import Feeds
from pipelocal.system.files import unwritable
from pipelocal.system.strict_json import to_json
from pipelocal.telemetry.formats import short_name
from pipelocal.telemetry.progress import Progress, StageRow
from pipelocal.telemetry.view import View

POLL_S = 0.2
AGREEMENT = "agreement"
"""Heading of the cosine of the gradient that a stage would send back and the one that came with its input."""


class Reporter:
    """Writes ``metrics.jsonl``, and feeds the view and the loggers, on a thread of its own.

    Args:
        take: returns the records received since the last call.
        on_error: called once if a record cannot be written; the reporter then stops.
        metrics: the file to append to; None to write no file.
        view: shows the run to the user.
        loggers: take the same records; they are started already.
        rows: the initial row of each stage, in order.
        total_steps: training batches in all.
        epochs: epochs in all.
        task_metrics: names of the metrics; the first one stands beside the loss.
    """

    def __init__(
        self,
        *,
        take: Callable[[], list[dict[str, Any]]],
        on_error: Callable[[Exception], object],
        metrics: Path | None,
        view: View,
        loggers: Feeds,
        rows: list[StageRow],
        total_steps: int,
        epochs: int,
        task_metrics: Sequence[str] = ("accuracy",),
    ) -> None:
        self.finals: list[dict[str, Any]] = []
        self._take = take
        self._on_error = on_error
        self._metrics = metrics
        self.view = view
        self._loggers = loggers
        self._rows = rows
        self._total_steps = total_steps
        self._epochs = epochs
        self._metric, *self._further = task_metrics
        self._epoch = 1
        self._phase = "train"
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Process the remaining records and end the thread; does not wait for the loggers."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._loggers.end()

    def _run(self) -> None:
        try:
            last_round = False
            while True:
                records = self._take()
                for record in records:
                    self._meet(record)
                lines = [to_json(record) for record in records]
                self._write(lines)
                self._loggers.put(lines)
                self.view.update(self._rows, self._progress())
                if last_round:
                    return
                last_round = self._stop.wait(POLL_S)
        except Exception as error:
            self._on_error(error)

    def _write(self, lines: list[str]) -> None:
        if self._metrics is None:
            return
        try:
            with self._metrics.open("a") as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            raise unwritable(self._metrics, error) from error

    def _meet(self, record: dict[str, Any]) -> None:
        record["time_s"] = round(time.monotonic() - self._started, 3)
        row = self._rows[record["stage"] - 1]
        if record["event"] == "train":
            changes = {
                key: record[key]
                for key in (
                    "step",
                    "loss",
                    "samples_per_second",
                    "busy_fraction",
                    "peak_memory_bytes",
                )
            }
            changes["metric"] = record[self._metric]
            if record["cosine"] is not None:
                changes["further"] = {**row.further, AGREEMENT: record["cosine"]}
        elif record["event"] == "evaluate":
            further = {f"eval {short_name(name)}": record[name] for name in self._further}
            changes = {"eval_metric": record[self._metric], "further": {**row.further, **further}}
        elif record["event"] == "freeze":
            changes = {"frozen": True}
        else:
            if record["event"] == "final":
                self.finals.append(record)
            return
        self._rows[record["stage"] - 1] = replace(row, **changes)
        if record["stage"] == len(self._rows) and record["event"] != "freeze":
            self._epoch = record["epoch"]
            self._phase = "eval" if record["event"] == "evaluate" else "train"

    def _progress(self) -> Progress:
        return Progress(
            step=min(row.step for row in self._rows),
            total_steps=self._total_steps,
            epoch=self._epoch,
            epochs=self._epochs,
            phase=self._phase,
            elapsed_s=time.monotonic() - self._started,
            metric=self._metric,
        )
