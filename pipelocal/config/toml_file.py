"""Options in a TOML file, whose names are those of the command line."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from pipelocal.config.train import TrainConfig
from pipelocal.errors import UserError
from pipelocal.run.earlier import TAKEN_AWAY, as_of_now
from pipelocal.system import toml as system_toml
from pipelocal.system.names import did_you_mean


def load_toml(path: str, *, what: str = "--config ") -> TrainConfig:
    """Options from a TOML file, the rest at their defaults; see :func:`read_toml`."""
    return TrainConfig(**read_toml(path, what=what))


def read_toml(path: str, *, what: str = "--config ") -> dict[str, Any]:
    """The options that a TOML file holds, by name.

    Args:
        path: of the file.
        what: stands before its path in errors: the option that names it, or nothing for a run folder's
            own, which may be of an earlier version.

    Raises:
        UserError: no such file, no valid TOML, an unknown name or a value of the wrong type.
    """
    values = system_toml.read_toml(path, what=what)
    if not what:
        values = as_of_now(values)
    known = {field.name: field for field in fields(TrainConfig)}
    del known["config"]  # a file names no further one
    options: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name == "objective_options":
            value = _as_words(f"{what}{path}", name, value)
        if isinstance(value, dict):
            raise UserError(
                f"{what}{path}: options stand in no table such as [{key}]: leave its heading out"
            )
        if name in TAKEN_AWAY:
            raise UserError(
                f"{what}{path}: there is no option '{key}' any more ({TAKEN_AWAY[name]}): leave it out"
            )
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"{what}{path}: there is no option '{key}'{hint}")
        if name in options:
            raise UserError(f"{what}{path}: '{name}' stands there twice, with - and with _")
        options[name] = _checked(f"{what}{path}", name, value, str(known[name].type))
    return options


def _as_words(place: str, name: str, value: Any) -> tuple[str, ...]:
    """The words ``key=value`` of a table, or of a list that holds them."""
    if isinstance(value, dict):
        texts = {k: str(v).lower() if isinstance(v, bool) else v for k, v in value.items()}
        return tuple(f"{key}={text}" for key, text in texts.items())
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    raise UserError(f"{place}: '{name}' must be a table, or a list such as [\"weight=2\"]")


def _checked(place: str, name: str, value: Any, annotation: str) -> Any:
    """The value in the field's type, where TOML's type fits."""
    # Which words is looked at with all others.
    wanted = re.sub(r"Literal\[.*?\]", "str", annotation.removesuffix(" | None"))
    if isinstance(value, tuple):
        return value
    if wanted == "float | str" and type(value) is not str:
        wanted = "float"
    if wanted == "float" and type(value) is int:
        return float(value)
    if wanted == "str" and type(value) in (int, float):
        return str(value)  # such as one weight, where several are allowed
    if type(value).__name__ not in wanted.split(" | "):
        raise UserError(f"{place}: '{name}' must be of type {wanted}, not {type(value).__name__}")
    return value
