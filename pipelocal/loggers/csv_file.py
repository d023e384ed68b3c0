"""``metrics.csv``: the records as a table, for spreadsheets and pandas."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from pipelocal.loggers.logger import LoggedRun, Record
from pipelocal.system.files import write_atomically
from pipelocal.system.strict_json import to_json


class CsvFile:
    """Writes a row for each record, in their order, but for each stage's first and last.

    The first says what the stage is made of, the last is in ``summary.json``.

    The columns are all figures' names, in the order in which they first come. So the file depends on
    ``metrics.jsonl`` alone, and is the same whether the run was interrupted or not.
    """

    needs_folder = True

    def start(self, run: LoggedRun) -> None:
        """Begin the file anew: all records of the run come again."""
        assert run.folder is not None
        self._path = run.folder / "metrics.csv"
        self._columns: list[str] = []
        self._path.write_text("")

    def record(self, record: Record) -> None:
        """Append a row; a figure that is new adds a column to all rows."""
        if record["event"] in ("begin", "final"):
            return
        new = [name for name in record if name not in self._columns]
        if new:
            self._columns += new
            self._widen()
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._line([_cell(record.get(name)) for name in self._columns]))

    def close(self) -> None:
        """Do nothing: every row is written."""

    def _widen(self) -> None:
        with self._path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
        width = len(self._columns)
        lines = [
            self._line(self._columns),
            *(self._line(r + [""] * (width - len(r))) for r in rows),
        ]
        write_atomically(Path(self._path), "".join(lines).encode())

    def _line(self, cells: list[str]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        return text.getvalue()


def _cell(value: Any) -> str:
    """A figure as text: nothing if it is unknown, numbers to their last digit, lists as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else to_json(value)
