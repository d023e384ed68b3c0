"""The recipes of ``launch/``, which an installed package brings along: ``pipelocal launch``."""

from __future__ import annotations

from pathlib import Path

from pipelocal.errors import UserError
from pipelocal.system.names import did_you_mean

INSTALLED = Path(__file__).parents[1] / "launch"
IN_A_COPY = Path(__file__).parents[2] / "launch"
"""Where an editable installation has them."""


def recipes() -> dict[str, str]:
    """Return what each recipe does, in its own words, by its name."""
    return {name: _first_words(text) for name, text in _texts().items()}


def recipe(name: str) -> str:
    """Return the text of a recipe.

    Raises:
        UserError: there is none of this name.
    """
    known = _texts()
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"launch {name}: choose one of {', '.join(known)}{hint}")
    return known[name]


def _texts() -> dict[str, str]:
    folder = INSTALLED if INSTALLED.is_dir() else IN_A_COPY
    files = sorted(path for path in folder.glob("*") if path.suffix in (".sh", ".yaml", ".py"))
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def _first_words(text: str) -> str:
    """Return the first sentence of a recipe's comment."""
    comments = (line[1:].strip() for line in text.splitlines() if line.startswith("# "))
    words = " ".join(comments)
    ends = (place for mark in (":", ".") if (place := words.find(f"{mark} ")) > 0)
    return words[: min(ends, default=len(words))]
