"""Tables of the arms of a study, for the terminal and for a README."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import common
from benchmarks.accuracy.setups import BP

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], str]]
"""By title, what makes the cell of a row; the first has the arm's name."""
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
    for own in _by_setup(rows):
        title = f"{own[0]['title']}, {own[0]['steps']} batches; accuracies in percent"
        cells = [[cell(row) for cell in columns.values()] for row in own]
        common.print_table(title, [*columns], cells)


def markdown(rows: Sequence[Row], columns: Columns) -> str:
    """The same tables for the README, with the number of steps in every heading."""
    lines = []
    for own in _by_setup(rows):
        epochs, steps = own[0]["epochs"], own[0]["steps"]
        lines.append(f"### {own[0]['title']}; {epochs} epoch(s), {steps:,} batches\n")
        lines.append("| " + " | ".join(columns) + " |")
        lines.append("| " + " | ".join("---" for _ in columns) + " |")
        for row in own:
            arm, *rest = (cell(row) for cell in columns.values())
            lines.append("| " + " | ".join([arm if arm == BP else f"`{arm}`", *rest]) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _by_setup(rows: Sequence[Row]) -> Iterator[list[Row]]:
    for name in dict.fromkeys(row["setup"] for row in rows):
        yield [row for row in rows if row["setup"] == name]
