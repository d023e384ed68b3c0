"""The recipes of ``launch/``, which an installed package brings along: ``pipelocal launch``."""

from __future__ import annotations

import difflib
from pathlib import Path

from pipelocal.errors import UserError

INSTALLED = Path(__file__).parents[1] / "launch"
IN_A_COPY = Path(__file__).parents[2] / "launch"
"""Where an editable installation has them."""


def recipes() -> dict[str, str]:
    """Return what each recipe does, in its own words, by its name."""
    folder = INSTALLED if INSTALLED.is_dir() else IN_A_COPY
    files = sorted(path for path in folder.glob("*") if path.suffix in (".sh", ".yaml"))
    return {path.name: _first_words(path.read_text(encoding="utf-8")) for path in files}


def recipe(name: str) -> str:
    """Return the text of a recipe.

    Raises:
        UserError: there is none of this name.
    """
    known = recipes()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(f"launch {name}: choose one of {', '.join(known)}{hint}")
    folder = INSTALLED if INSTALLED.is_dir() else IN_A_COPY
    return (folder / name).read_text(encoding="utf-8")


def _first_words(text: str) -> str:
    """Return the first sentence of a recipe's comment."""
    comments = (line[1:].strip() for line in text.splitlines() if line.startswith("# "))
    words = " ".join(comments)
    ends = (place for mark in (":", ".") if (place := words.find(f"{mark} ")) > 0)
    return words[: min(ends, default=len(words))]
