"""Chooses where to cut a chain into stages."""

from pipelocal.partition.cut import (
    Cut,
    by_count,
    even_blocks,
    from_names,
    from_text,
    names_of,
    other_reading,
    to_text,
)

__all__ = [
    "Cut",
    "by_count",
    "even_blocks",
    "from_names",
    "from_text",
    "names_of",
    "other_reading",
    "to_text",
]
