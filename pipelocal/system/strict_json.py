"""The one place where JSON is written that others may read: no NaN and no Infinity, which are no JSON."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(content: Any, *, indent: int | None = None) -> str:
    """JSON text; null where a figure is NaN or infinite, for then there is none.

    Args:
        content: of dicts, lists, tuples, strings, numbers and None.
        indent: spaces of each level; None for one line.
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nonfinite(content), indent=indent, allow_nan=False)


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nonfinite(item) for item in value]
    return value
