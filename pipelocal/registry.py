"""Names that a user may give on the command line, and what stands behind them."""

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from pipelocal.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """A named set of things of one kind, such as all models.

    Args:
        kind: the noun for error messages, such as ``"model"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: put what it decorates under ``name``."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """The entry called ``name``; a :class:`UserError` with the nearest name if there is none."""
        try:
            return self._entries[name]
        except KeyError:
            close = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UserError(
                f"unknown {self.kind} '{name}': choose one of {', '.join(self)}{hint}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
