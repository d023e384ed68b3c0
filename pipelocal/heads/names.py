"""Names of heads, behind some of which more may stand, as in ``twin=2``, ``twin=all:next``, ``twin=3@2``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from pipelocal.errors import UserError
from pipelocal.heads.rows import check_row
from pipelocal.registry import Registry

HeadBuilder = Callable[..., nn.Module]
"""Called with the shape of one feature (no batch dimension) and the number of classes, labels or outputs,
and with any of these keywords that it has a parameter for: ``output_shape=`` (of one row of what it shall
make), ``target_shape=`` (of one row of the targets), ``input_shape=`` (of one row of the stage's input),
``downstream=`` (a :class:`~pipelocal.heads.downstream.Downstream`)."""

ROWS = ("downstream", "twin", "guided")
"""The heads of copied units, behind whose names depth, rule and square may stand."""


def ends_in_classifier(name: str) -> bool:
    """Return whether the head of a name ends in a copy of the model's own classifier."""
    return _apart(name)[0] in ROWS


def _apart(name: str) -> tuple[str, str | None, str | None]:
    """Return the head, what stands behind ``=``, and what behind ``@``; None for what is not there."""
    before, at, square = name.partition("@")
    head, equals, given = before.partition("=")
    return head, given if equals else None, square if at else None


class HeadRegistry(Registry[HeadBuilder]):
    """Heads by name. ``twin=2:next@2`` is ``twin`` with this depth, rule and square, each if given."""

    def get(self, name: str) -> HeadBuilder:
        """See :class:`~pipelocal.registry.Registry`."""
        asked = self._asked(name)
        if asked is None:
            return super().get(name)
        builder = partial(self._entries[_apart(name)[0]], **asked)
        builder.__qualname__ = name  # type: ignore[attr-defined]
        return builder

    def later(self, name: str) -> HeadBuilder:
        """See :class:`~pipelocal.registry.Registry`."""
        return super().later(name) if self._asked(name) is None else self.get(name)

    def check(self, name: str) -> None:
        """See :class:`~pipelocal.registry.Registry`."""
        if self._asked(name) is None:
            super().check(name)

    def name_of(self, entry: object) -> str:
        """See :class:`~pipelocal.registry.Registry`; a partial of a user's own is called as its function."""
        known = super().name_of(entry)
        if isinstance(entry, partial) and known == "partial":
            return self.name_of(entry.func)
        return known

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (super().__contains__(name) or bool(self._asked(name)))

    def _asked(self, name: str) -> dict[str, Any] | None:
        """Return depth, rule and square that stand behind a name; None if it is another kind of name.

        Raises:
            UserError: they are behind a head that has none, or there are none such.
        """
        head, given, square = _apart(name)
        if (given is None and square is None) or head not in self._entries:
            return None
        if head not in ROWS:
            such = f"{', '.join(ROWS[:-1])} and {ROWS[-1]}"
            what = "a depth" if given is not None else "a square"
            raise UserError(f"head '{name}': {what} is for {such} alone: give {head}")
        asked: dict[str, Any] = {"square": _number(square)}
        if given is not None:
            depth, colon, rule = given.partition(":")
            asked |= {"depth": _number(depth), "rule": rule if colon else None}
        check_row(**asked, what=f"head '{name}'")
        return asked


def _number(text: str | None) -> int | str | None:
    """Return what is a whole number as such, and anything else as it is, to be refused."""
    return int(text) if text is not None and text.isdecimal() else text
