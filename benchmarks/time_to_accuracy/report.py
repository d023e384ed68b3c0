"""Times to accuracy from steps and curves; tables, targets and the plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import Target
from benchmarks.time_to_accuracy.curves import Curve
from benchmarks.time_to_accuracy.steps import Measured
from benchmarks.time_to_accuracy.work import Learner, Method, Setting

BELOW_BP = 0.01
"""The accuracy that all are to reach lies so far below the one that back-propagation ends at."""

Row = dict[str, Any]
Chosen = Sequence[tuple[Setting, list[Method]]]
Curves = Mapping[Learner, Curve]


REFERENCE = Learner(parts=2)
"""Back-propagation as DDP over two ranks computes it, and 1F1B with two micro-batches."""


def wanted_accuracy(curves: Iterable[Curve]) -> float:
    """What all are to reach, by the first number of passes of the reference."""
    return next(curve.final for curve in curves if curve.learner == REFERENCE) - BELOW_BP


def time_rows(chosen: Chosen, curves: Curves, accuracy: float, measured: Measured) -> list[Row]:
    """A row for every setting and method."""
    rows: list[Row] = []
    for setting, methods in chosen:
        own: list[Row] = []
        for method in methods:
            curve = curves[method.learner(setting.ranks)]
            steps = curve.steps_to(accuracy)
            step, fill = measured.median(setting, method), fill_s(setting, method, measured)
            own.append(
                {
                    "part": "time",
                    "setting": setting.name,
                    "ranks": setting.ranks,
                    "method": method.name,
                    "accuracy": accuracy,
                    "learner": curve.learner.name,
                    "passes": curve.passes,
                    "learning_rate": curve.rate,
                    "final_accuracy": curve.final,
                    "steps": steps,
                    "step_s": step,
                    "step_s_each_round": measured.of(setting, method),
                    "fill_s": fill,
                    "seconds": None if steps is None else steps * step + fill,
                }
            )
        base = fastest(row["seconds"] for row in own if is_own(row))
        for row in own:
            seconds = row["seconds"]
            row["time_over_pipelocal"] = None if None in (seconds, base) else seconds / base
        rows += own
    return rows


def is_own(row: Row) -> bool:
    """Whether it is pipelocal's."""
    return str(row["method"]).startswith("pipelocal")


def fastest(seconds: Iterable[float | None]) -> float | None:
    """The least of those that there are; None if there are none."""
    return min((each for each in seconds if each is not None), default=None)


def fill_s(setting: Setting, method: Method, measured: Measured) -> float:
    """Seconds until the last stage has its first batch; a step of the others begins and ends on all."""
    if method.kind != "pipelocal":
        return 0.0
    return (setting.ranks - 1) * (measured.median(setting, method) + setting.one_way_s)


def make_targets(rows: Sequence[Row]) -> list[Target]:
    """Pipelocal's time against that of the best other method, in every setting."""
    targets = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        here = [row for row in rows if row["setting"] == setting]
        peer = fastest(row["seconds"] for row in here if not is_own(row))
        for row in filter(is_own, here):
            name = f"{setting}: {row['method']}, time over that of the best other method"
            if row["seconds"] is None:
                targets.append(Target(name=name, value=None, goal="<= 1", met=False))
            elif peer is not None:
                targets.append(common.at_most(name, row["seconds"] / peer, 1.0))
    return targets


def show(rows: Sequence[Row], curves: Iterable[Curve]) -> None:
    """A table of the learners, and one for every setting."""
    common.print_table(
        "learners: test accuracy in percent at the end, and with each learning rate in the search",
        ("learner", "passes", "learning rate", "at the end", "in the search"),
        [
            (
                curve.learner.name,
                str(curve.passes),
                f"{curve.rate:g}",
                percent(curve.final),
                "  ".join(f"{rate:g}: {percent(value)}" for rate, value in curve.tried.items())
                or "-",
            )
            for curve in curves
        ],
    )
    for setting in dict.fromkeys(row["setting"] for row in rows):
        here = [row for row in rows if row["setting"] == setting]
        common.print_table(
            f"{setting}: time until {percent(here[0]['accuracy'])} %",
            (
                "method",
                "passes",
                "at the end, %",
                "steps",
                "step, ms",
                "time, s",
                "time / best pipelocal's",
            ),
            [
                (
                    row["method"],
                    str(row["passes"]),
                    percent(row["final_accuracy"]),
                    _figure(row["steps"], "d"),
                    f"{1000 * row['step_s']:.0f}",
                    _figure(row["seconds"], ".0f"),
                    _figure(row["time_over_pipelocal"], ".2f", without="-"),
                )
                for row in here
            ],
        )


def percent(accuracy: float | None) -> str:
    """Such as ``81.49``; ``-`` for none."""
    return "-" if accuracy is None else f"{100 * accuracy:.2f}"


def _figure(value: float | None, form: str, without: str = "not reached") -> str:
    return without if value is None else format(value, form)


def plot(rows: Sequence[Row], curves: Curves, path: Path) -> None:
    """Accuracy against time, a panel for every setting, and against steps."""
    pyplot = common.load_pyplot()
    if pyplot is None:
        return
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    by_name = {curve.learner.name: curve for curve in curves.values()}
    figure, panels = pyplot.subplots(
        1, len(settings) + 1, figsize=(5 * len(settings) + 5, 4), layout="constrained", sharey=True
    )
    for curve in curves.values():
        steps, accuracies = zip(*curve.points, strict=True)
        panels[0].plot(steps, [100 * a for a in accuracies], label=curve.learner.name)
    panels[0].set(xlabel="steps", ylabel="test accuracy, %", title="whatever the link")
    for axes, setting in zip(panels[1:], settings, strict=True):
        for row in (row for row in rows if row["setting"] == setting):
            points = by_name[row["learner"]].points
            times = [step * row["step_s"] + row["fill_s"] for step, _ in points]
            axes.plot(times, [100 * accuracy for _, accuracy in points], label=row["method"])
        axes.set(xlabel="seconds", title=setting, xscale="log")
        axes.tick_params(axis="x", which="minor", labelbottom=False)
    for axes in panels:
        axes.axhline(100 * rows[0]["accuracy"], color="black", linewidth=1, linestyle="--")
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    print(f"plot: {path}")
