"""Options of an objective as text, ``key=value`` each: what its recipe or class takes by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipelocal.errors import UserError
from pipelocal.system.names import did_you_mean

OPTION = "--objective-options"
SWITCH = {"true": True, "false": False}


def is_recipe_class(objective: object) -> bool:
    """Return whether this is a class of recipes, a dataclass whose fields are its options, such as SGR."""
    return (
        isinstance(objective, type) and is_dataclass(objective) and hasattr(objective, "for_stage")
    )


def options_from(
    objective: Callable[..., Any], texts: Sequence[str], *, name: str
) -> dict[str, Any]:
    """Convert options to the types that an objective declares.

    Args:
        objective: a class of recipes, or a class or function that is called with a stage's place and then
            takes these by name too.
        texts: ``key=value`` each.
        name: of the objective, for errors.

    Raises:
        UserError: an option is unknown, given twice or of the wrong type; lists those that there are.
    """
    kinds, found = _kinds(objective), dict[str, Any]()
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.replace("-", "_")
        wrong = f"{OPTION} {text}: "
        if not equals:
            raise UserError(f"{wrong}give key=value: {name} has {described_options(objective)}")
        if key not in kinds:
            hint = did_you_mean(key, kinds)
            raise UserError(f"{wrong}{name} has {described_options(objective)}{hint}")
        if key in found:
            raise UserError(f"{wrong}'{key}' is given twice: give it once")
        try:
            found[key] = _converted(kinds[key], value)
        except ValueError:
            raise UserError(f"{wrong}give {key}={_said(kinds[key])}") from None
    return found


def check_words(recipe: object) -> None:
    """Refuse a recipe of which a field is none of the words that its type, a ``Literal``, lists.

    Raises:
        UserError: names the field and the words.
    """
    for key, kind in get_type_hints(type(recipe)).items():
        if get_origin(kind) is Literal and getattr(recipe, key) not in get_args(kind):
            raise UserError(
                f"{type(recipe).__name__}: {key}={getattr(recipe, key)}: choose {_listed(get_args(kind))}"
            )


def described_options(objective: Callable[..., Any]) -> str:
    """Return an objective's options with their values by default, as text."""
    parameters, kinds = inspect.signature(objective).parameters, _kinds(objective)
    shown = []
    for key, kind in kinds.items():
        default = parameters[key].default
        word = str(default).lower() if default is None or isinstance(default, bool) else default
        mark = "" if default is inspect.Parameter.empty else f" ({word})"
        shown.append(f"{key}={_said(kind)}{mark}")
    return ", ".join(shown) or "no options"


def _kinds(objective: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of what an objective takes by name."""
    hints: dict[str, Any] = {}
    is_class = isinstance(objective, type) and not is_dataclass(objective)
    with suppress(NameError, TypeError):  # types that are known to a type checker alone
        hints = get_type_hints(objective.__init__ if is_class else objective)
    parameters = list(inspect.signature(objective).parameters.values())
    if not is_recipe_class(objective):
        parameters = parameters[1:]  # the place
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        each.name: hints.get(
            each.name, str if each.default in (None, each.empty) else type(each.default)
        )
        for each in parameters
        if each.kind in by_name
    }


def _parts(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union; those of ``Literal`` stay together."""
    return (kind,) if get_origin(kind) in (Literal, None) else get_args(kind)


def _converted(kind: Any, text: str) -> Any:
    """Convert text to a type, or to the first fitting one of a union.

    Raises:
        ValueError: it fits none.
    """
    parts = _parts(kind)
    if NoneType in parts and text == "none":
        return None
    if bool in parts and text in SWITCH:
        return SWITCH[text]
    for part in parts:
        if get_origin(part) is Literal:
            words = {str(word): word for word in get_args(part)}
            if text in words:
                return words[text]
    for number in (int, float):
        if number in parts:
            with suppress(ValueError):
                return number(text)
    if str in parts:
        return text
    raise ValueError(text)


def _listed(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}"


def _said(kind: Any) -> str:
    """Return what a type takes, in words."""
    named = {
        int: "WHOLE-NUMBER",
        float: "NUMBER",
        str: "TEXT",
        bool: "true|false",
        NoneType: "none",
    }
    return "|".join(
        "|".join(map(str, get_args(part)))
        if get_origin(part) is Literal
        else named.get(part, "TEXT")
        for part in _parts(kind)
    )
