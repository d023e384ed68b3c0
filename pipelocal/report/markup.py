"""Builds HTML in which every text is escaped, because only :func:`tag` makes markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


VOID = frozenset({"meta", "br"})
"""Elements without an end."""


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Html:
    """Return an element; children that are not markup are escaped, and so are attributes.

    Args:
        name: the element's name.
        children: text, or markup.
        attributes: with ``_`` for ``-``, and behind names that Python reserves; None to leave one out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(parts: Iterable[str]) -> Html:
    """Join text and markup; text is escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1
) -> Html:
    """Return a table that scrolls sideways where it is too wide; the first column heads the rows.

    Args:
        caption: says what it shows.
        head: names of the columns.
        rows: the cells.
        text_columns: number of columns, from the left, that are aligned as text and not as figures.
    """
    columns = tag(
        "tr",
        *(
            tag("th", name, scope="col", class_="text" if place < text_columns else None)
            for place, name in enumerate(head)
        ),
    )
    body = []
    for row in rows:
        cells = [
            tag("td", cell, class_="text" if place < text_columns else None)
            for place, cell in enumerate(row)
        ]
        body.append(tag("tr", tag("th", row[0], scope="row", class_="text"), *cells[1:]))
    whole = tag("table", tag("caption", caption), tag("thead", columns), tag("tbody", *body))
    return tag("div", whole, class_="wide", tabindex=0, role="region", aria_label=caption)
