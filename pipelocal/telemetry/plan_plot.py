"""A plan's simulations as a picture."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelocal.errors import UserError
from pipelocal.paths import check_path
from pipelocal.simulate.schedules import SCHEDULES
from pipelocal.simulate.sweep import Sweep

LABELS = {
    "ranks": "ranks, one stage each",
    "bandwidth": "bytes a second over a link",
    "batch": "samples in a global batch",
}


def check_plot(option: str, path: str) -> None:
    """Find out before the work that a plot cannot be made.

    Args:
        option: names the file.
        path: of the file.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written or is no PNG.
    """
    file = Path(path)
    check_path(option, file)
    if file.suffix != ".png":
        raise UserError(f"{option} {path}: give a file whose name ends in .png")
    if file.is_dir() or not file.parent.is_dir():
        raise UserError(f"{option} {path}: give a file in a folder that exists")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: give another file")
    load_pyplot(option)


def plot_sweeps(sweeps: Sequence[Sweep], path: str, title: str) -> None:
    """Draw the utilisation along every axis.

    Args:
        sweeps: one panel each.
        path: PNG file to write.
        title: stands above them.
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


def load_pyplot(what: str) -> Any:
    """matplotlib's pyplot, drawing to files only.

    Raises:
        UserError: it is not installed; ``what`` needs it.
    """
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise UserError(
            f"{what} needs matplotlib, which is not installed: pip install 'pipelocal[plot]'"
        ) from error
