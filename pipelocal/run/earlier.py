"""Options of earlier versions, as run folders and snapshots of those name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TAKEN_AWAY = {
    "rank_order": "ranks hold the stages in order",
    "compress_share": "--compress takes it, as in sparse-sign=0.05",
    "compress_rank": "--compress takes it, as in powersgd=4",
    "delta_size": "--delta takes it, as in sketch=512",
    "freeze_patience": "--freeze-stage takes it, as in 2:plateau=5",
}
"""Options that there are no more, and what holds in their place."""

HEADS = {"token": "linear", "token-mlp": "mlp", "token-mean": "linear"}
"""Heads that others are now by the shapes of features and outputs."""

NUMBERS = (
    ("compress_share", 0.1, "compress", "sparse-sign"),
    ("compress_rank", 2, "compress", "powersgd"),
    ("delta_size", 256, "delta", "sketch"),
)
"""Which of them was a number, its default, and the option and the name there that take it now."""


def as_of_now(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of this version that mean what those of an earlier one did.

    Args:
        options: by name, of an earlier version or of this one; all that one has or a part.
    """
    found = dict(options)
    for old, default, option, name in NUMBERS:
        number = found.pop(old, default)
        text = found.get(option)
        if number == default or not isinstance(text, str):
            continue
        # One's own code was given the number too. It no longer is, which is refused where this is read.
        if text == name or ":" in text:
            found[option] = f"{text}={number}"
    patience, frozen = found.get("freeze_patience", 3), found.get("freeze_stage")
    if patience != 3 and isinstance(frozen, str):
        found["freeze_stage"] = frozen.replace("plateau", f"plateau={patience}")
    if found.get("head") in HEADS:
        found["head"] = HEADS[found["head"]]
    return {name: value for name, value in found.items() if name not in TAKEN_AWAY}
