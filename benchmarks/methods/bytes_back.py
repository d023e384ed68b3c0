"""The picture of what each byte back buys: accuracy against the bytes that flow back for a sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.accuracy.setups import BP
from benchmarks.accuracy.tables import by_setup

Row = dict[str, Any]
HEADS = ("conv", "auto")
"""A series each: methods that differ in what flows back alone."""
EVERY_BATCH = "LoCo"
"""It sends back one gradient of every stage's input for every sample, as back-propagation in a pipeline."""


def series(rows: Sequence[Row], head: str) -> list[tuple[str, float, float]]:
    """What stands behind a head, by the bytes back of a sample: name, KiB, test accuracy in percent.

    It begins with greedy training, to which nothing comes back, and ends with back-propagation.
    """
    by_arm = {row["arm"]: row for row in rows}
    every = next((by_arm[a] for h in HEADS if (a := f"{h}, {EVERY_BATCH}") in by_arm), None)
    found = []
    for arm, row in by_arm.items():
        own = arm == head or (arm.startswith(f"{head}, ") and not row["forward_only"])
        if own and row["bytes_back"] is not None:
            name = "greedy" if arm == head else arm.removeprefix(f"{head}, ")
            found.append((name, row["bytes_back"] / 1024, _test(row)))
    if every is not None and every["bytes_back"] is not None and BP in by_arm:
        found.append((BP, every["bytes_back"] / 1024, _test(by_arm[BP])))
    return sorted(found, key=lambda point: point[1])


def plot(all_rows: Sequence[Row], path: Path) -> None:
    """A panel for each set-up, a line for each head; what sends as much as ``bp`` stands apart."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    setups = [*by_setup(all_rows)]
    figure, panels = pyplot.subplots(
        1, len(setups), figsize=(6 * len(setups), 4.5), squeeze=False, layout="constrained"
    )
    for panel, rows in zip(panels[0], setups, strict=True):
        for head, colour in zip(HEADS, ("tab:blue", "tab:orange"), strict=True):
            points = series(rows, head)
            line = [point for point in points if not point[0].startswith(EVERY_BATCH)]
            if not line:
                continue
            _, kib, accuracy = zip(*line, strict=True)
            panel.plot(kib, accuracy, marker="o", color=colour, label=f"behind {head}")
            apart = [point for point in points if point not in line]
            for _, x, y in apart:
                panel.plot(x, y, marker="D", linestyle="", color=colour)
            for what, x, y in points:
                panel.annotate(what, (x, y), fontsize=7, xytext=(4, -9), textcoords="offset points")
        panel.set_xscale("symlog", linthresh=1)
        panel.set(
            xlabel="KiB that flow back for a training sample, over all edges",
            ylabel="test accuracy of the last head, %",
            title=rows[0]["title"],
        )
        if panel.lines:
            panel.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    print(f"plot: {path}")


def _test(row: Row) -> float:
    mean = common.spread([100 * value for value in row["test_accuracy"].values()])["mean"]
    assert mean is not None
    return mean
