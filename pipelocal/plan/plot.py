"""Plots a plan's simulations."""

from __future__ import annotations

from collections.abc import Sequence

from pipelocal.plan.simulate.schedules import SCHEDULES
from pipelocal.plan.simulate.sweep import Sweep
from pipelocal.telemetry.pyplot import load_pyplot

LABELS = {
    "ranks": "ranks, one stage each",
    "bandwidth": "bytes a second over a link",
    "batch": "samples in a global batch",
}


def plot_sweeps(sweeps: Sequence[Sweep], path: str, title: str) -> None:
    """Draw the utilisation along every axis.

    Args:
        sweeps: one panel each.
        path: PNG file to write.
        title: title above the panels.
    """
    pyplot = load_pyplot("--plot")
    figure, panels = pyplot.subplots(1, len(sweeps), figsize=(4.5 * len(sweeps), 4), sharey=True)
    for axes, sweep in zip(panels, sweeps, strict=True):
        for i, schedule in enumerate(SCHEDULES):
            shares = [outcomes[i].utilisation for outcomes in sweep.outcomes]
            axes.plot(sweep.values, shares, marker="o", markersize=3, label=schedule)
        ranks = "" if sweep.ranks is None else f" ({sweep.ranks} ranks)"
        axes.set_xscale("log", base=10 if sweep.axis == "bandwidth" else 2)
        if sweep.axis != "bandwidth":
            axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel=LABELS[sweep.axis] + ranks, ylim=(0, 1.03))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="utilisation in the long run")
    panels[0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
