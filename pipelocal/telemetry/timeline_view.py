"""Shows a timeline as a table and as a plot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table

from pipelocal.telemetry.pyplot import load_pyplot
from pipelocal.telemetry.timeline import COMPUTING, WAITING, Event, Timeline

COLOURS = {
    "receive": "#dddddd",
    "send": "#aaaaaa",
    "forward": "#4c9f70",
    "head": "#8ac6a0",
    "backward": "#3b6ea5",
    "reconcile": "#9b5fb5",
    "average": "#e0c8a0",
    "step": "#e0a030",
    "evaluate": "#c8c060",
}
SMALL = ("header",)
"""Messages left out of the plot, because x follows at once."""

SHOWN = 12
"""Number of training batches in the plot: the last ones."""


def print_timeline(timeline: Timeline, stream: TextIO) -> None:
    """Print a row for every stage, with what any of them did, and the verdict."""
    console = Console(file=stream, width=None if stream.isatty() else 160)
    table = Table(title="milliseconds a training batch", title_justify="left")
    waits = ("wait for input", "hand over, wait for room", "average with replicas")
    names = dict(zip((*COMPUTING, *WAITING), (*COMPUTING, *waits), strict=True))
    done = [name for name in names if any(stage.ms[name] for stage in timeline.stages)]
    for title in ("stage", "rank", "computing", *(names[name] for name in done)):
        table.add_column(title, justify="right")
    for stage in timeline.stages:
        busy = sum(stage.share(name) for name in COMPUTING)
        table.add_row(
            str(stage.stage),
            str(stage.rank),
            f"{busy:.0%}",
            *(f"{stage.ms[name]:.2f}" for name in done),
        )
    # Not directly to the stream: rich ends the program if the reader has closed it.
    with console.capture() as captured:
        console.print(table)
        for edge, ms in sorted(timeline.edges_ms.items()):
            console.print(f"edge {edge}: under way for {ms:.2f} ms a batch", highlight=False)
        console.print(timeline.verdict(), highlight=False, soft_wrap=True)
    stream.write(captured.get())


Lane = tuple[str, str, int, bool]
"""Category, name and rank of a row of the picture, and whether it is the receiving end."""


def shown_events(timeline: Timeline) -> tuple[list[Event], dict[Lane, list[Event]]]:
    """Return what is drawn of a timeline: the events of the last batches, and the same by row, in order."""
    batches = sorted({e["args"]["batch"] for e in timeline.events if e["name"] == "forward"})
    shown = set(batches[-SHOWN:])
    events = [
        e
        for e in timeline.events
        if e["args"]["batch"] in shown and not e["args"]["lane"].endswith(SMALL)
    ]
    found = sorted({_lane(e) for e in events}, key=_place)
    lanes: dict[Lane, list[Event]] = {lane: [] for lane in found}
    for event in events:
        lanes[_lane(event)].append(event)
    return events, lanes


def lane_name(lane: Lane) -> str:
    """Name a row for the user."""
    category, name, _, received = lane
    return f"{name} {'arrives' if received else 'leaves'}" if category == "transfer" else name


def _place(lane: Lane) -> tuple[str, list[int], Lane]:
    """Return by what rows are sorted: stage 10 comes after stage 2."""
    return lane[0], [int(number) for number in re.findall(r"\d+", lane[1])], lane


def _lane(event: Event) -> Lane:
    return event["cat"], event["args"]["lane"], event["pid"], event["name"] == "recv"


def draw_timeline(timeline: Timeline, path: Path) -> None:
    """Draw a bar for every stage and edge over the last training batches, as PNG."""
    pyplot = load_pyplot("the picture")
    events, lanes = shown_events(timeline)
    rows = {lane: row for row, lane in enumerate(lanes)}
    start = min(e["ts"] for e in events)
    figure, axes = pyplot.subplots(figsize=(13, 1.4 + 0.35 * len(rows)), layout="constrained")
    for e in events:
        row = rows[_lane(e)]
        colour = COLOURS.get(e["name"], "#d0584c")
        if e["cat"] == "transfer":
            colour = "#d0584c"
        axes.barh(row, e["dur"] / 1000, left=(e["ts"] - start) / 1000, color=colour, height=0.8)
    axes.set_yticks(range(len(rows)), [lane_name(lane) for lane in lanes], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds", title=timeline.verdict())
    axes.title.set_fontsize(8)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    columns = len(COLOURS)
    figure.legend(handles, COLOURS, ncols=columns, fontsize=7, loc="outside lower center")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
