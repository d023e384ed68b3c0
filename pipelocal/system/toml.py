"""Flat TOML files of plain values."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelocal.errors import UserError


def read_toml(path: str | Path, *, what: str = "") -> dict[str, Any]:
    """What a TOML file holds.

    Args:
        path: of the file.
        what: stands before its path in errors: the option that names it, or nothing.

    Raises:
        UserError: there is no such file, or it is no valid TOML.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{what}{path}: {error.strerror or error}") from error
    try:
        # Windows editors begin UTF-8 with a mark, which is no part of the text.
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what}{path} is not written in UTF-8 ({error.reason} at byte {error.start}): save it in "
            f"UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{what}{path} is not valid TOML: {error}") from error


def to_toml(values: Mapping[str, Any]) -> str:
    """Plain values as TOML; those that are None are left out."""
    # JSON's strings, numbers, booleans and lists are TOML's too.
    lines = [
        f"{name} = {json.dumps(value, ensure_ascii=False)}"
        for name, value in values.items()
        if value is not None
    ]
    return "\n".join(lines) + "\n"
