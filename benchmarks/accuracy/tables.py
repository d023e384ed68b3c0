"""Tables of the arms of a study, for the terminal and for a README."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from benchmarks import common
from benchmarks.accuracy.setups import BP

Row = Mapping[str, Any]
AnyRow = TypeVar("AnyRow", bound=Row)
Columns = Mapping[str, Callable[[Row], str]]
"""By title, what makes the cell of a row; the first has the arm's name. One that is unknown in all rows is
left out."""
UNKNOWN = "-"


def with_sd(spread: Mapping[str, float | None] | None) -> str:
    """``mean ± sd``."""
    if spread is None:
        return UNKNOWN
    sd = "" if spread["sd"] is None else f" ± {spread['sd']:.2f}"
    return f"{spread['mean']:.2f}{sd}"


def number(value: float | None, form: str = ".2f") -> str:
    """A figure that may be unknown."""
    return UNKNOWN if value is None else f"{value:{form}}"


def _test(row: Row) -> str:
    return with_sd(common.spread([100 * value for value in row["test_accuracy"].values()]))


def _perplexity(row: Row) -> str:
    return with_sd(None if row["perplexity"] is None else common.spread(row["perplexity"]))


def _perplexity_behind(row: Row) -> str:
    known = row["perplexity"] is not None and row["arm"] != BP
    return number(row.get("perplexity_behind_bp_percent") if known else None, "+.1f")


def _behind(row: Row) -> str:
    return UNKNOWN if row["arm"] == BP else with_sd(row.get("points_behind_bp"))


def _cost(key: str, row: Row) -> str:
    return number(row.get("cost", {}).get(key))


def _kib(key: str, row: Row) -> str:
    value = row[key]
    return number(None if value is None else value / 1024, ".1f")


def _heads(row: Row) -> str:
    return " ".join(f"{100 * value:.1f}" for value in row["stage_test_accuracy"])


FIGURES: Columns = {
    "seeds": lambda row: str(len(row["seeds"])),
    "perplexity": _perplexity,
    "percent over bp": _perplexity_behind,
    "test": _test,
    "points behind bp": _behind,
    "gap closed": lambda row: number(row.get("gap_closed"), ".0%"),
    "training": lambda row: f"{100 * row['train_accuracy']:.2f}",
    "training loss": lambda row: f"{row['train_loss']:.4f}",
}
HEADS: Columns = {
    "head": lambda row: str(row["arm"]),
    **FIGURES,
    "heads' multiply-adds": partial(_cost, "head_multiply_adds"),
    "slowest stage": partial(_cost, "slowest"),
    "head of each stage": _heads,
}
"""Of a study of heads."""
METHODS: Columns = {
    "method": lambda row: str(row["arm"]),
    "rate": lambda row: f"{row['learning_rate']:g}",
    **FIGURES,
    "multiply-adds": partial(_cost, "step_multiply_adds"),
    "slowest stage": partial(_cost, "slowest"),
    "peak memory": partial(_cost, "peak_memory"),
    "KiB forward": partial(_kib, "bytes_forward"),
    "KiB back": partial(_kib, "bytes_back"),
    "head of each stage": _heads,
}
"""Of a study of methods."""


def show(rows: Sequence[Row], columns: Columns) -> None:
    """Print a table for each set-up."""
    for own in by_setup(rows):
        title = f"{own[0]['title']}, {own[0]['steps']} batches; accuracies in percent"
        known, cells = _cells(own, columns)
        common.print_table(title, known, cells)


def markdown(rows: Sequence[Row], columns: Columns) -> str:
    """The same tables for the README, with the number of steps in every heading."""
    lines = []
    for own in by_setup(rows):
        epochs, steps = own[0]["epochs"], own[0]["steps"]
        lines.append(f"### {own[0]['title']}; {epochs} epoch(s), {steps:,} batches\n")
        known, cells = _cells(own, columns)
        lines.append("| " + " | ".join(known) + " |")
        lines.append("| " + " | ".join("---" for _ in known) + " |")
        for arm, *rest in cells:
            lines.append("| " + " | ".join([arm if arm == BP else f"`{arm}`", *rest]) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _cells(rows: Sequence[Row], columns: Columns) -> tuple[list[str], list[list[str]]]:
    """The titles of the columns in which anything is known, and the rows' cells."""
    cells = {title: [cell(row) for row in rows] for title, cell in columns.items()}
    known = [title for title, column in cells.items() if set(column) != {UNKNOWN}]
    return known, [list(row) for row in zip(*(cells[title] for title in known), strict=True)]


def by_setup(rows: Sequence[AnyRow]) -> Iterator[list[AnyRow]]:
    """The rows of each set-up."""
    for name in dict.fromkeys(row["setup"] for row in rows):
        yield [row for row in rows if row["setup"] == name]
