"""Checks that names can be printed and written to text files."""

import unicodedata

UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, bytes that are not UTF-8, and line breaks."""


def unwritable(text: str) -> str | None:
    """Return the first character not allowed in a name; None if the name is fine."""
    return next((c for c in text if unicodedata.category(c) in UNWRITABLE), None)
