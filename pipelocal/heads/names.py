"""Names of heads, behind some of which a depth may stand, as in ``downstream=2`` or ``twin=all:next``."""

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

WITH_DEPTH = ("downstream", "twin", "guided")
"""The names behind which a depth may stand."""


def ends_in_classifier(name: str) -> bool:
    """Return whether the head of a name ends in a copy of the model's own classifier."""
    return name.partition("=")[0] in WITH_DEPTH


class HeadRegistry(Registry[HeadBuilder]):
    """Heads by name. A name with a depth behind it stands for the head with that depth, and rule if given."""

    def get(self, name: str) -> HeadBuilder:
        """See :class:`~pipelocal.registry.Registry`."""
        asked = self._asked(name)
        if asked is None:
            return super().get(name)
        builder = partial(self._entries[name.partition("=")[0]], **asked)
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
        """Return depth and rule that stand behind a name; None if it is another kind of name.

        Raises:
            UserError: they are behind a head that has none, or there are none such.
        """
        head, equals, given = name.partition("=")
        if not equals or head not in self._entries:
            return None
        if head not in WITH_DEPTH:
            such = f"{', '.join(WITH_DEPTH[:-1])} and {WITH_DEPTH[-1]}"
            raise UserError(f"head '{name}': a depth is for {such} alone: give {head}")
        number, colon, rule = given.partition(":")
        asked: dict[str, Any] = {
            "depth": int(number) if number.isdecimal() else number,
            "rule": rule if colon else None,
        }
        check_row(**asked, what=f"head '{name}'")
        return asked
