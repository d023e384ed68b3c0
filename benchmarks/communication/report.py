"""Tables and the plot of a run's rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.communication.network import Shape
from benchmarks.communication.rates import describe

Row = dict[str, Any]


def show(rows: Sequence[Row]) -> None:
    """One table of bytes, and one of rates for every model."""
    counts = [row for row in rows if row["part"] == "bytes"]
    if counts:
        common.print_table(
            "KiB a batch: tensors, on the link forward, on the link back",
            ("method", "model", "tensors", "forward", "back"),
            [
                (
                    row["method"],
                    row["model"],
                    *(
                        _kib(row[key])
                        for key in ("tensor_bytes", "link_bytes_forward", "link_bytes_back")
                    ),
                )
                for row in counts
            ],
        )
    for model, own in _by_model(rows).items():
        methods = list(dict.fromkeys(row["method"] for row in own))
        cells = {(describe(shape_of(row)), row["method"]): row for row in own}
        base = next(m for m in methods if "sgr" in m)
        common.print_table(
            f"{model}: time of a step over that on the unshaped link / over that of {base}",
            ("link (latency one way)", *methods),
            [
                (shape, *(_cell(cells[shape, method], base) for method in methods))
                for shape in dict.fromkeys(shape for shape, _ in cells)
            ],
        )


def shape_of(row: Row) -> Shape:
    """The link of a row of rates."""
    return Shape(bits_per_s=row["bits_per_s"], one_way_s=row["one_way_s"])


def _by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["part"] == "rates":
            found.setdefault(row["model"], []).append(row)
    return found


def _kib(value: float | None) -> str:
    return "-" if value is None else f"{value / 1024:.1f}"


def _cell(row: Row, base: str) -> str:
    return f"{row['slowdown']:.2f} / {row['time_over_' + base]:.2f}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """The rate on every link over that of the unshaped one."""
    found = _by_model(rows)
    pyplot = common.load_pyplot() if found else None
    if pyplot is None:
        return
    figure, panels = pyplot.subplots(len(found), 1, figsize=(9, 3.6 * len(found)), squeeze=False)
    for axes, (model, own) in zip(panels[:, 0], found.items(), strict=True):
        methods = list(dict.fromkeys(row["method"] for row in own))
        shapes = list(dict.fromkeys(describe(shape_of(row)) for row in own))
        width = 0.8 / len(methods)
        for i, method in enumerate(methods):
            rates = [1 / row["slowdown"] for row in own if row["method"] == method]
            places = [j + (i - (len(methods) - 1) / 2) * width for j in range(len(shapes))]
            axes.bar(places, rates, width, label=method)
        axes.axhline(1, color="black", linewidth=1)
        axes.set_xticks(range(len(shapes)), [shape.replace(", ", "\n") for shape in shapes])
        axes.tick_params(axis="x", labelsize=7)
        axes.set(title=f"{model} (latency one way)", ylabel="rate over the unshaped link")
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
