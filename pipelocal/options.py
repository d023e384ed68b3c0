"""Defines options: fields with limits and traits beyond name, type, default and help text.

Options are fields of frozen dataclasses, kept next to the code that uses them. A new option takes only its
field and its use: bounds, and whether runs and ranks may differ in it, are declared with the field::

    window: int = option(2, limits=Limits(1, 1024), of_the_bits=False)
    \"\"\"Most batches that a stage may have sent and the next one not yet taken.\"\"\"
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipelocal.errors import UserError

MOST_BATCHES = 10**12
"""A thousand batches per second for thirty years; small multiples still fit in the stream's 64 bits."""

POSITIVE, BELOW_ONE = math.nextafter(0.0, 1.0), math.nextafter(1.0, 0.0)

SCALE = 1e30
"""Largest weight or rate, safely within the range of float32."""


@dataclass(frozen=True)
class Limits:
    """The least and greatest values of an option that a machine could handle."""

    least: float
    most: float
    wanted: str = ""
    """Description of valid values to use instead of the two bounds, for non-integer options."""
    why: str = ""
    """Reason for the upper bound, if it is not obvious."""

    def check(self, name: str, value: float, *, given: str | None = None) -> None:
        """Refuse a value, NaN included.

        Args:
            name: of the option's field.
            value: of it, or a part of it.
            given: all of it, as it was given, where the value is a part.

        Raises:
            UserError: the value is out of bounds; names option, value and bound.
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
    """Return limits that allow any number above 0, up to ``most``."""
    return Limits(POSITIVE, most, "a number above 0", why)


BATCHES = Limits(1, MOST_BATCHES)
SHARE = Limits(POSITIVE, 1, "a number above 0, to 1")
PATIENCE = positive(1e6, "seconds: eleven days")
NORM = positive(SCALE)
PENALTY = Limits(0, SCALE, "a number of at least 0")
DECAY = Limits(POSITIVE, BELOW_ONE, "a number between 0 and 1, such as 0.99")


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
    """Make a field of a dataclass of options.

    Args:
        default: the default value.
        limits: limits of a number; every numeric option has some.
        of_the_bits: whether the result depends on it, so that a run continues only with the same value.
        alike: whether all ranks must be given the same value.
        seldom: whether it is so rarely needed that only ``--help-all`` shows it.
    """
    said = {"limits": limits, "of_the_bits": of_the_bits, "alike": alike, "seldom": seldom}
    return field(default=default, metadata=said)


def option_name(name: str) -> str:
    """Return a field's name as a command-line option, such as ``--batch-size``."""
    return f"--{name.replace('_', '-')}"


def limits_of(options: Any) -> dict[str, Limits]:
    """Return the limits of a dataclass of options, or of an instance, by field name."""
    found = {field.name: field.metadata.get("limits") for field in fields(options)}
    return {name: limits for name, limits in found.items() if limits is not None}


def names_that(options: Any, trait: str) -> frozenset[str]:
    """Return the names of the options whose ``of_the_bits`` or ``alike`` is false."""
    return frozenset(f.name for f in fields(options) if not f.metadata.get(trait, True))


def check_values(options: Any) -> None:
    """Refuse numbers outside their limits, and words that are not a valid choice; None is skipped.

    Args:
        options: a dataclass of options.

    Raises:
        UserError: a value is invalid; names option, value, and what is valid.
    """
    kind: Any = type(options)
    known, bounded = _choices(kind), limits_of(options)
    for name, words in known.items():
        value = getattr(options, name)
        numeric = name in bounded
        if value is None or value in words or (numeric and isinstance(value, int | float)):
            continue
        wanted = "give a number, or" if numeric else "choose one of"
        raise UserError(f"{option_name(name)} {value}: {wanted} {', '.join(words)}")
    for name, limits in bounded.items():
        value = getattr(options, name)
        if value is None or value in known.get(name, ()):
            continue
        if isinstance(value, str) and name in _listing(kind):
            for number in listed_numbers(name, value):
                limits.check(name, number, given=value)
            continue
        if not isinstance(value, int | float):
            raise UserError(f"{option_name(name)} {value!r}: give a number")
        if isinstance(value, float) and not limits.wanted:
            raise UserError(f"{option_name(name)} {value}: give a whole number")
        limits.check(name, value)


def listed_numbers(name: str, value: float | str) -> list[float]:
    """Return the numbers of an option that takes one, or several with commas between them.

    Raises:
        UserError: the text is no such list.
    """
    try:
        return [float(word) for word in value.split(",")] if isinstance(value, str) else [value]
    except ValueError:
        raise UserError(
            f"{option_name(name)} {value}: give a number, or one for each stage with commas between them"
        ) from None


@cache
def _listing(kind: type) -> frozenset[str]:
    """Return the names of the options that take a number or a list of numbers in text."""
    hints = get_type_hints(kind)
    return frozenset(name for name, hint in hints.items() if {float, str} <= set(get_args(hint)))


@cache
def _choices(kind: type) -> dict[str, tuple[str, ...]]:
    """Return the valid words of options that take fixed words, by name."""
    hints = get_type_hints(kind)
    return {name: words for name, hint in hints.items() if (words := choices(hint)) is not None}


def choices(hint: Any) -> tuple[str, ...] | None:
    """Return the words that a type such as ``Literal["a", "b"] | None`` allows; None for other types."""
    parts = (hint,) if get_origin(hint) is Literal else get_args(hint)
    return next((get_args(part) for part in parts if get_origin(part) is Literal), None)
