"""Describes user objects as text that is equal in different processes and runs."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from functools import partial
from types import CodeType, FunctionType
from typing import Any

MOST = 200
"""Most characters of a quoted value; longer values are replaced by a digest."""


def described(thing: Any) -> str:
    """Describe an object by name and state; functions by a digest of their code, never an address."""
    if isinstance(thing, str | int | float | bool | None):
        return str(thing)
    if isinstance(thing, FunctionType):
        return f"{thing.__module__}.{thing.__qualname__} {_digest(_parts_of(thing))}"
    if isinstance(thing, type):
        return f"{thing.__module__}.{thing.__qualname__}"
    if isinstance(thing, partial):
        inner = (thing.func, *thing.args, *sorted(thing.keywords.items()))
        return f"partial({', '.join(map(described, inner))})"
    if dataclasses.is_dataclass(thing):
        values = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing) if f.repr}
        inside = ", ".join(f"{name}={described(value)}" for name, value in values.items())
        return f"{type(thing).__name__}({inside})"
    if isinstance(thing, list | tuple):
        return f"[{', '.join(map(described, thing))}]"
    if isinstance(thing, Mapping):
        return "{" + ", ".join(f"{key}: {described(thing[key])}" for key in sorted(thing)) + "}"
    text = repr(thing)
    if re.search(r" at 0x[0-9a-f]+", text):
        return f"{type(thing).__module__}.{type(thing).__qualname__}"
    text = " ".join(text.split())
    return text if len(text) <= MOST else f"{type(thing).__name__} {_digest([text])}"


def _parts_of(function: FunctionType) -> list[str]:
    """Return what a function's behaviour depends on, as far as the function itself holds it."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    return [
        *_code(function.__code__),
        *(described(value) for value in (function.__defaults__ or ())),
        *(described(value) for value in cells if not isinstance(value, FunctionType)),
    ]


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _code(code: CodeType) -> list[str]:
    parts = [code.co_code.hex(), *code.co_names]
    for constant in code.co_consts:
        if isinstance(constant, frozenset):  # whose order differs between processes
            constant = sorted(map(repr, constant))
        parts += _code(constant) if isinstance(constant, CodeType) else [repr(constant)]
    return parts


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
