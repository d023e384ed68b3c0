"""What the benchmarks share: options, targets, tables, result files.

A benchmark is a script ``benchmarks/<what>/run.py`` that ends in ``run_main(main)``. It parses its
options with :class:`Parser`, trains by :mod:`benchmarks.training` or :mod:`benchmarks.torchrun`, prints with
:func:`print_table` and writes one JSON file with :func:`write_result`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.intervals import interval_of_median
from pipelocal.errors import PipelocalError
from pipelocal.system.strict_json import to_json


class BenchmarkError(Exception):
    """Something the user must mend; the text is one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise BenchmarkError(f"{message} (--help lists the options)")


def run_main(main: Callable[[], None]) -> NoReturn:
    """Run a benchmark and end the process: errors that the user can mend become one line."""
    signal.signal(signal.SIGTERM, _on_sigterm)  # so that the runs under way end too
    try:
        main()
    except (BenchmarkError, PipelocalError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped: interrupted by the user", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _on_sigterm(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(143)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A figure held against a goal, computed from the results of the same run."""

    name: str
    value: float | None
    goal: str
    met: bool | None
    """None where the figure is only reported."""
    interval: tuple[float, float] | None = None
    """Of a median over rounds: what holds it with 95 %; None of a single figure, or of too few rounds."""


Figure = float | Sequence[float]
"""A figure, or one of each round, of which the median counts."""


def at_least(name: str, figure: Figure, threshold: float) -> Target:
    """A figure that ought not to be below a threshold, with its whole interval if it has one."""
    value, interval = _median(figure)
    met = (value if interval is None else interval[0]) >= threshold
    return Target(name=name, value=value, goal=f">= {threshold:g}", met=met, interval=interval)


def at_most(name: str, figure: Figure, threshold: float) -> Target:
    """A figure that ought not to be above a threshold, with its whole interval if it has one."""
    value, interval = _median(figure)
    met = (value if interval is None else interval[1]) <= threshold
    return Target(name=name, value=value, goal=f"<= {threshold:g}", met=met, interval=interval)


def reported(name: str, figure: Figure | None) -> Target:
    """A figure without a goal."""
    value, interval = (None, None) if figure is None else _median(figure)
    goal = "reported, no threshold"
    return Target(name=name, value=value, goal=goal, met=None, interval=interval)


def _median(figure: Figure) -> tuple[float, tuple[float, float] | None]:
    if isinstance(figure, (int, float)):
        return figure, None
    return statistics.median(figure), interval_of_median(figure)


def describe_environment(*, threads: int, device: str = "cpu") -> dict[str, Any]:
    """What the figures were taken on; no host name and no path.

    Args:
        threads: CPU threads of each process.
        device: ``cpu`` or ``cuda``, as :func:`resolve_device` gives it.
    """
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "pipelocal": importlib.metadata.version("pipelocal"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "threads": threads,
        "device": name,
        "date": datetime.now(UTC).date().isoformat(),
    }


def resolve_device(device: str) -> str:
    """``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise BenchmarkError(f"--device {device}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("--device cuda: there is no CUDA device here; choose cpu")
    return device


def check_writable(path: Path) -> None:
    """Find out before the work, not after it, that a result file cannot be written."""
    if path.is_dir():
        raise BenchmarkError(f"--json {path} is a folder: give a file")
    if not path.parent.is_dir():
        raise BenchmarkError(f"--json {path}: make the folder {path.parent} first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BenchmarkError(f"--json {path} cannot be written: give another file")


def write_result(
    path: Path,
    *,
    environment: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    targets: Sequence[Target],
) -> None:
    """Write ``environment``, ``results`` and ``targets`` as JSON."""
    content = {
        "environment": environment,
        "results": results,
        "targets": [asdict(target) for target in targets],
    }
    path.write_text(to_json(content, indent=2) + "\n")


FIGURES, END = "<!-- figures -->", "<!-- end -->"
"""The lines of a README between which a script writes its tables."""


def put_into(readme: Path, text: str) -> None:
    """Write tables between the two lines of a README that are there for it.

    Raises:
        BenchmarkError: it has no such lines.
    """
    before, begin, rest = readme.read_text().partition(FIGURES)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchmarkError(f"{readme} has no place for figures: put in lines {FIGURES} and {END}")
    readme.write_text(f"{before}{FIGURES}\n\n{text}\n\n{END}{after}")


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, standard deviation (n - 1; None for one value), least and greatest."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
    }


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    # Piped output gets the width that the table needs, not 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_targets(targets: Sequence[Target]) -> None:
    """Print the targets with what came of them."""
    words = {True: "met", False: "NOT met", None: "-"}
    rows = [
        (t.name, "-" if t.value is None else f"{t.value:.3g}", _interval(t), t.goal, words[t.met])
        for t in targets
    ]
    print_table("targets", ("target", "value", "95 %", "goal", ""), rows)


def _interval(target: Target) -> str:
    return "" if target.interval is None else "{:.3g} to {:.3g}".format(*target.interval)


def load_pyplot() -> Any | None:
    """matplotlib's pyplot, drawing to files only; None, with a line that says so, without it."""
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'pipelocal[bench]')")
        return None
