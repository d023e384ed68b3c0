"""What an option is, beside its name, its type, its default and the help below it.

Options are fields of frozen dataclasses, which lie beside what they are for. One more costs its field and
its use: bounds, and what a run and its ranks may differ in, are said where the field is::

    window: int = option(2, limits=Limits(1, 1024), of_the_bits=False)
    \"\"\"Most batches that a stage may have sent and the next one not yet taken.\"\"\"
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipelocal.errors import UserError

MOST_BATCHES = 10**12
"""A thousand batches a second for thirty years; products of a few still fit in the stream's 64 bits."""

POSITIVE, BELOW_ONE = math.nextafter(0.0, 1.0), math.nextafter(1.0, 0.0)

SCALE = 1e30
"""Of weights and rates: beyond it float32 ends."""


@dataclass(frozen=True)
class Limits:
    """The least and the most that an option may be: such that a machine could meet it."""

    least: float
    most: float
    wanted: str = ""
    """What to ask for in place of the two; of options that are no whole numbers."""
    why: str = ""
    """Where the most comes from, if it is not plain."""

    def check(self, name: str, value: float, *, given: str | None = None) -> None:
        """Refuse a value, NaN included.

        Args:
            name: of the option's field.
            value: of it, or a part of it.
            given: all of it, as it was given, where the value is a part.

        Raises:
            UserError: names option, value and bound.
        """
        if self.least <= value <= self.most:
            return
        if self.wanted:
            most = f", at most {self.most:g}" if value > self.most >= 1 else ""
            text = f"give {self.wanted}{most}"
        elif value < self.least:
            text = f"must be at least {self.least}"
        else:
            text = f"must be at most {self.most}"
        shown = value if given is None else given
        raise UserError(f"{option_name(name)} {shown}: {text}{self.why and f' ({self.why})'}")


def positive(most: float, why: str = "") -> Limits:
    """Any number above 0, up to the most."""
    return Limits(POSITIVE, most, "a number above 0", why)


BATCHES = Limits(1, MOST_BATCHES)
SHARE = Limits(POSITIVE, 1, "a number above 0, to 1")
PATIENCE = positive(1e6, "seconds: eleven days")


@dataclass(frozen=True)
class Number:
    """A number that may stand behind a name, as 4 in ``powersgd=4``."""

    default: float
    """Without one; a whole number if the others are too."""
    limits: Limits


def without_number(text: str) -> str:
    """The name in front of ``=`` and a number; ``=`` in the path of a reference is a part of it."""
    place, colon, name = text.rpartition(":")
    return place + colon + name.partition("=")[0]


def numbers_of(name: str, text: str | None, known: Mapping[str, Number]) -> dict[str, float]:
    """What text such as ``powersgd=4`` says of all that take a number, the rest at their defaults.

    Args:
        name: of the option's field.
        text: a name with a number behind it, or none.
        known: the numbers, by the names that take one.

    Raises:
        UserError: names the option and what is wanted.
    """
    numbers = {each: number.default for each, number in known.items()}
    chosen = without_number(text or "")
    if text is None or chosen == text:
        return numbers
    given = text[len(chosen) + 1 :]
    if chosen not in known:
        such = " and ".join(known)
        raise UserError(f"{option_name(name)} {text}: a number is for {such} alone: give {chosen}")
    whole = isinstance(known[chosen].default, int)
    try:
        value = int(given) if whole else float(given)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        example = f"{chosen}={known[chosen].default}"
        raise UserError(
            f"{option_name(name)} {text}: give {kind} behind {chosen}=, such as {example}"
        ) from None
    known[chosen].limits.check(name, value, given=text)
    return {**numbers, chosen: value}


def option(
    default: Any,
    *,
    limits: Limits | None = None,
    of_the_bits: bool = True,
    alike: bool = True,
    seldom: bool = False,
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: the value where none is given.
        limits: of a number; every number has some.
        of_the_bits: whether the result depends on it, so that a run goes on with the same value only.
        alike: whether all ranks must be given the same.
        seldom: whether so few need it that ``--help`` leaves it to ``--help-all``.
    """
    said = {"limits": limits, "of_the_bits": of_the_bits, "alike": alike, "seldom": seldom}
    return field(default=default, metadata=said)


def option_name(name: str) -> str:
    """A field's name as an option of the command line, such as ``--batch-size``."""
    return f"--{name.replace('_', '-')}"


def limits_of(options: Any) -> dict[str, Limits]:
    """The limits of a dataclass of options, or of one of its objects, by the field's name."""
    found = {field.name: field.metadata.get("limits") for field in fields(options)}
    return {name: limits for name, limits in found.items() if limits is not None}


def names_that(options: Any, trait: str) -> frozenset[str]:
    """The names of the options for which ``of_the_bits`` or ``alike`` was said to be false."""
    return frozenset(f.name for f in fields(options) if not f.metadata.get(trait, True))


def check_values(options: Any) -> None:
    """Refuse numbers out of their limits, and words that are no choice; None is passed over.

    Args:
        options: a dataclass of options.

    Raises:
        UserError: names option, value, and what is wanted.
    """
    kind: Any = type(options)
    words = _choices(kind)
    for name, value in _given(options):
        kinds = words.get(name)
        if kinds is not None and value not in kinds:
            raise UserError(f"{option_name(name)} {value}: choose one of {', '.join(kinds)}")
    for name, limits in limits_of(options).items():
        value = getattr(options, name)
        if value is None:
            continue
        if not isinstance(value, int | float):
            raise UserError(f"{option_name(name)} {value!r}: give a number")
        limits.check(name, value)


def _given(options: Any) -> Iterator[tuple[str, Any]]:
    for one in fields(options):
        value = getattr(options, one.name)
        if value is not None:
            yield one.name, value


@cache
def _choices(kind: type) -> dict[str, tuple[str, ...]]:
    """The words of options that take fixed ones, by name."""
    hints = get_type_hints(kind)
    return {name: words for name, hint in hints.items() if (words := choices(hint)) is not None}


def choices(hint: Any) -> tuple[str, ...] | None:
    """The words that a type such as ``Literal["a", "b"] | None`` allows; None of another kind of type."""
    parts = (hint,) if get_origin(hint) is Literal else get_args(hint)
    return next((get_args(part) for part in parts if get_origin(part) is Literal), None)
