"""Names that a line of output and a text file can hold."""

import unicodedata

UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, bytes that are no UTF-8, and line breaks."""


def unwritable(text: str) -> str | None:
    """The first character that no name may have; None for a good name, whatever its script."""
    return next((c for c in text if unicodedata.category(c) in UNWRITABLE), None)
