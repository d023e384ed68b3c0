"""Shows a comparison of runs: as tables in a terminal, and as a page with their curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table

from pipelocal.report.chart import Curve, hues, legend, line_chart
from pipelocal.report.comparison import Comparison
from pipelocal.report.markup import Html, joined, table, tag
from pipelocal.report.page import page, write_page
from pipelocal.report.record import Point, RunRecord

SAME = "The runs have the same options."


def print_comparison(comparison: Comparison, stream: TextIO) -> None:
    """Print a table of figures, and one of the options that differ."""
    console = Console(
        file=stream,
        width=None if stream.isatty() else 160,
        highlight=False,
        markup=False,
        emoji=False,
    )
    # Not directly to the stream: rich ends the program if the reader has closed it.
    with console.capture() as captured:
        console.print(_terminal_table("", comparison.labels, comparison.rows))
        console.print()
        if comparison.options:
            options = list(comparison.options.items())
            console.print(_terminal_table("options that differ", comparison.labels, options))
        else:
            console.print(SAME)
        for line in comparison.differences:
            console.print(line, soft_wrap=True)
    stream.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def _terminal_table(
    name: str, labels: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]
) -> Table:
    shown = Table(name, box=None, header_style="bold", pad_edge=False)
    for label in labels:
        shown.add_column(label, justify="right", overflow="fold")
    for title, values in rows:
        shown.add_row(title, *values)
    return shown


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write a page with the runs' curves over each other.

    Raises:
        UserError: the file cannot be written.
    """
    head = ("", *comparison.labels)
    figures = table(
        "The last head's figures, speed, memory of the largest stage, and bytes over all edges",
        head,
        [(name, *values) for name, values in comparison.rows],
    )
    rows = [(name, *values) for name, values in comparison.options.items()]
    options = table("Options that differ", head, rows) if rows else tag("p", SAME)
    others = [tag("p", line) for line in comparison.differences]
    text = page(
        f"{len(comparison.runs)} runs compared",
        ", ".join(str(run.path) for run in comparison.runs),
        [
            ("figures", "Figures", figures),
            ("curves", "Curves", _curves(comparison)),
            ("options", "What differs", joined([options, *others])),
        ],
        "Written by pipelocal compare from the runs' own files.",
    )
    write_page(path, text)


def _curves(comparison: Comparison) -> Html:
    runs = comparison.runs
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics[:1]))
    charts = []
    for name in (*metrics, "loss"):
        for event, where in (("evaluate", "evaluation"), ("train", "training")):
            title = f"{name} in {where}, last head"
            charts.append(_chart(comparison, title, event, name, over="step"))
        title = f"{name} in evaluation over time, last head"
        charts.append(_chart(comparison, title, "evaluate", name, over="time_s"))
    charts.append(
        _chart(
            comparison, "samples/s of the last stage", "train", "samples_per_second", over="step"
        )
    )
    key = legend([_curve(comparison, place, ()) for place in range(len(runs))])
    return joined([key, tag("div", *filter(None, charts), class_="charts")])


def _chart(comparison: Comparison, title: str, event: str, name: str, *, over: str) -> Html | None:
    found = [
        _curve(comparison, place, _of_last_stage(run, event, name, over))
        for place, run in enumerate(comparison.runs)
    ]
    if not any(curve.points for curve in found):
        return None
    x = "batches" if over == "step" else "seconds"
    return line_chart(title, found, x=x, y=title, log=name == "loss")


def _of_last_stage(run: RunRecord, event: str, name: str, over: str) -> list[Point]:
    return run.series(event, name, over=over).get(run.last_stage, [])


def _curve(comparison: Comparison, place: int, points: Sequence[Point]) -> Curve:
    return Curve(
        name=f"{place + 1}: {comparison.labels[place]}",
        short=str(place + 1),
        points=points,
        hue=hues(len(comparison.runs))[place],
    )
