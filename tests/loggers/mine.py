"""Loggers of one's own, which the tests name by reference."""

from __future__ import annotations

from typing import Any

from pipelocal.loggers import LoggedRun


class Keeps:
    """Keeps what it was given; the newest one is in ``made``."""

    made: list[Keeps] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.run: LoggedRun | None = None
        self.records: list[dict[str, Any]] = []
        self.closed = 0
        Keeps.made.append(self)

    def start(self, run: LoggedRun) -> None:
        self.run = run

    def record(self, record: dict[str, Any]) -> None:
        self.records.append(dict(record))
        record.clear()  # it is the logger's own

    def close(self) -> None:
        self.closed += 1


class Raises(Keeps):
    """Fails at its third record."""

    def record(self, record: dict[str, Any]) -> None:
        super().record(record)
        if len(self.records) == 3:
            raise ValueError("the service is gone\nand says so at length")


class Leaves(Keeps):
    """Ends its thread, and cannot be closed."""

    def start(self, _run: LoggedRun) -> None:
        raise SystemExit(5)

    def close(self) -> None:
        raise OSError("never opened")


class Half:
    """No logger: it lacks two methods."""

    def start(self, run: LoggedRun) -> None: ...


class Refused(Keeps):
    """Cannot be made."""

    def __init__(self) -> None:
        raise KeyError("TOKEN")
