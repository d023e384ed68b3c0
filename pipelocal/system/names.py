"""Names that users give: whether they can be printed and written to text files, and what they may mean."""

import difflib
import unicodedata
from collections.abc import Iterable

UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, bytes that are not UTF-8, and line breaks."""


def unwritable(text: str) -> str | None:
    """Return the first character not allowed in a name; None if the name is fine."""
    return next((c for c in text if unicodedata.category(c) in UNWRITABLE), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return what ends the refusal of an unknown name: ``; did you mean 'stages'?``, or nothing."""
    close = difflib.get_close_matches(name, [*known], n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
