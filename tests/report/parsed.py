"""Reads a page as a browser would, and refuses what is not well-formed."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

LOADING = ("src", "srcset", "data", "action", "poster", "background", "xlink:href")


class Page(HTMLParser):
    """A page: its elements, ids, tables by caption, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open, "elements without an end"
        assert len(self.ids) == len(set(self.ids))

    @classmethod
    def read(cls, path: Path) -> Page:
        """Read a page from a file."""
        return cls(path.read_text(encoding="utf-8"))

    @property
    def text(self) -> str:
        """All text outside of style and script."""
        return "\n".join(
            line
            for name, lines in self.texts.items()
            if name not in ("style", "script")
            for line in lines
        )

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See :class:`HTMLParser`."""
        given = dict(attrs)
        assert not set(given) & set(LOADING), f"<{tag}> loads something"
        assert all(not name.startswith("on") for name in given)
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        if tag == "a":
            assert (given["href"] or "").startswith("#")
        self.ids += [given["id"] or ""] if "id" in given else []
        self.seen.append(tag)
        if tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "table":
            self._rows = []
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """See :class:`HTMLParser`."""
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self.texts["caption"][-1]] = self._rows

    def handle_data(self, data: str) -> None:
        """See :class:`HTMLParser`."""
        if not self.open:
            return
        self.texts.setdefault(self.open[-1], []).append(data)
        if {"td", "th"} & set(self.open):
            self._rows[-1][-1] += data
