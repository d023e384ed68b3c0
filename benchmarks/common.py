"""What the benchmarks share: options, runs of ``pipelocal train``, tables, result files.

A benchmark is a script ``benchmarks/<what>/run.py`` that ends in ``run_main(main)``. It parses its
options with :class:`Parser`, trains with :func:`train_all`, prints with :func:`print_table` and
writes one JSON file with :func:`write_result`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.intervals import interval_of_median
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.resolve import blueprint_of
from pipelocal.errors import PipelocalError
from pipelocal.system.strict_json import to_json

POLL_S = 0.1
NOT_COUNTED = 2
"""First records of a run, in which the pipeline fills and the processes warm up."""


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


# Targets and the result file


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


# Runs of pipelocal


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run of ``pipelocal train``."""

    config: TrainConfig
    folder: Path
    """The run's folder; without ``keep`` it goes when :func:`train_each` ends."""
    summary: dict[str, Any]
    """The content of ``summary.json``."""
    metrics: list[dict[str, Any]]
    """The lines of ``metrics.jsonl``."""
    data: dict[str, Any] = field(default_factory=dict)
    """What ``run.json`` says of the data, such as the numbers of samples."""
    went_on: bool = False
    """Whether it was stopped and went on, so that its counters of bytes cover only what came then."""

    def options(self) -> dict[str, Any]:
        """All options of the run; without paths, which belong to one machine."""
        return _without_paths(self.config)

    def command(self) -> str:
        """See :func:`command`."""
        return command(self.config)

    def last_training(self, stage: int, key: str, *, batches: int) -> float | None:
        """Mean of a training figure over the last ``batches`` batches, or a few more.

        A single record is too noisy to compare: the last one of an epoch may cover one batch.
        """
        records = [r for r in self.metrics if r["event"] == "train" and r["stage"] == stage]
        total, covered = 0.0, 0
        for before, record in reversed(list(zip([None, *records], records, strict=False))):
            if record[key] is None:
                return None
            length = record["step"] - (before["step"] if before else 0)
            total += length * record[key]
            covered += length
            if covered >= batches:
                break
        return total / covered if covered else None


def _without_paths(config: TrainConfig) -> dict[str, Any]:
    """Options of a run, of which none belongs to one machine; a tokenizer by its file's name."""
    options = {name: value for name, value in asdict(config).items() if name not in _PATHS}
    tokenizer = options["tokenizer"]
    return options | {"tokenizer": None if tokenizer is None else Path(tokenizer).name}


_PATHS = ("data_root", "out", "config")
WENT_ON = "went-on"
"""File in a run's folder that says so."""


def command(config: TrainConfig) -> str:
    """The command of a run, with ``DIR`` for folders of this machine."""
    if config.tokenizer is not None:
        config = replace(config, tokenizer=Path(config.tokenizer).name)
    return shlex.join(["python", *train_arguments(config, data_root="DIR")])


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run of ``pipelocal train`` that ended with an error."""

    config: TrainConfig
    code: int
    reason: str
    """The last line that it printed."""

    @property
    def diverged(self) -> bool:
        """Whether a loss or a weight was no longer finite."""
        return "is NaN or infinite" in self.reason


def train_all(
    configs: Sequence[TrainConfig],
    *,
    jobs: int,
    on_finish: Callable[[Run, int], None] | None = None,
    keep: Path | None = None,
) -> list[Run]:
    """Train with each of the options, every run in a process of its own.

    Args:
        configs: the options; ``out`` is not used.
        jobs: processes at a time.
        on_finish: told of each finished run, and how many have finished.
        keep: see :func:`train_each`.

    Returns:
        The runs in the order of ``configs``.

    Raises:
        PipelocalError: options that cannot work; nothing was started.
        BenchmarkError: a run failed; the others were stopped.
    """
    runs: dict[int, Run] = {}
    for index, run in train_each(configs, jobs=jobs, keep=keep):
        if isinstance(run, Failure):
            config = run.config
            what = f"{config.objective}, seed {config.seed}"
            raise BenchmarkError(f"{what}, exit code {run.code}: {run.reason}")
        runs[index] = run
        if on_finish is not None:
            on_finish(run, len(runs))
    return [runs[index] for index in range(len(configs))]


def train_each(
    configs: Sequence[TrainConfig], *, jobs: int, keep: Path | None = None
) -> Generator[tuple[int, Run | Failure], None, None]:
    """Like :func:`train_all`, but gives each run with its index as soon as it ends, also failed ones.

    Closing the generator stops the runs under way.

    Args:
        configs: as above.
        jobs: as above.
        keep: folder for the runs, of which each has its own, named after its options. What lies there
            finished is taken as it is, and what lies there unfinished is gone on with. None for folders
            that go at the end.

    Raises:
        PipelocalError: options that cannot work; nothing was started.
    """
    for config in configs:
        validate(config)
        blueprint_of(config)
    waiting = list(range(len(configs)))
    with _folder(keep) as root, _processes() as busy:
        folders = [root / (str(i) if keep is None else _key(c)) for i, c in enumerate(configs)]
        while waiting or busy:
            while len(busy) < jobs:
                # Equal options share a folder, so the second waits and takes what the first leaves there.
                taken = {folders[index] for index in busy}
                index = next((i for i in waiting if folders[i] not in taken), None)
                if index is None:
                    break
                waiting.remove(index)
                outcome = _kept(configs[index], folders[index])
                if outcome is not None:
                    yield index, outcome
                else:
                    busy[index] = _start(configs[index], folders[index])
            for index in [i for i, process in busy.items() if process.poll() is not None]:
                (folders[index] / "code").write_text(str(busy.pop(index).returncode))
                yield index, _collect(configs[index], folders[index])
            time.sleep(POLL_S)


def train_those_that_converge(
    configs: Sequence[TrainConfig],
    names: Sequence[str],
    *,
    jobs: int,
    keep: Path | None = None,
) -> Generator[tuple[int, Run], None, None]:
    """Like :func:`train_each`, but what diverges is said and left out.

    Args:
        configs: as there.
        names: of the runs, for what is said.
        jobs: as there.
        keep: as there.

    Raises:
        BenchmarkError: a run failed in another way.
    """
    for index, run in train_each(configs, jobs=jobs, keep=keep):
        if isinstance(run, Run):
            yield index, run
        elif run.diverged:
            print(f"{names[index]}: diverged", flush=True)
        else:
            raise BenchmarkError(f"{names[index]}: exit code {run.code}: {run.reason}")


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """A folder for runs, which goes at the end if it is not to be kept."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        yield Path(scratch)


def kept_run(config: TrainConfig, keep: Path) -> Run | Failure | None:
    """What :func:`train_each` would take as it is; None for what it would train."""
    return _kept(config, keep / _key(config))


def _kept(config: TrainConfig, folder: Path) -> Run | Failure | None:
    """What came of a run that ended before; None if it is to be done, or done again."""
    if not (folder / "code").exists():
        return None
    outcome = _collect(config, folder)
    return outcome if isinstance(outcome, Run) or outcome.diverged else None


def _key(config: TrainConfig) -> str:
    """A run's folder: the same for the same options, wherever the data lie, whatever the defaults are now."""
    options = _without_paths(config)
    return hashlib.sha256(to_json(options).encode()).hexdigest()[:16]


def launch(ranks: int, arguments: Sequence[str], *, what: str) -> str:
    """Run a script or module under torchrun, one thread a rank; its standard output.

    Args:
        ranks: number of processes.
        arguments: such as ``-m pipelocal train``, or a script and its options.
        what: names the run in the error.

    Raises:
        BenchmarkError: it failed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "rror" in line]
        raise BenchmarkError(f"{what}: {lines[0] if lines else 'failed'}")
    return done.stdout


def train_over_ranks(ranks: int, options: Sequence[str], *, what: str) -> dict[str, Any]:
    """``pipelocal train`` under torchrun; the content of ``summary.json``.

    Args:
        ranks: number of processes.
        options: of the train command, without ``--out``.
        what: names the run in the error.

    Raises:
        BenchmarkError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        out = Path(scratch, "run")
        arguments = ["-m", "pipelocal", "train", "--plain", *options, "--out", str(out)]
        launch(ranks, arguments, what=what)
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
        return summary


def metrics_over_ranks(ranks: int, config: TrainConfig) -> list[dict[str, Any]]:
    """``pipelocal train`` under torchrun; the lines of ``metrics.jsonl``.

    Raises:
        BenchmarkError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        out = Path(scratch, "run")
        arguments = [
            *train_arguments(config, data_root=config.data_root),
            "--plain",
            "--out",
            str(out),
        ]
        launch(ranks, arguments, what=f"{config.model}, {config.objective}, {ranks} ranks")
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def seconds_of_a_batch(metrics: Sequence[Mapping[str, Any]], stage: int, batch_size: int) -> float:
    """Median seconds of a training batch at a stage, once the pipeline is full.

    Args:
        metrics: the lines of ``metrics.jsonl``.
        stage: the last one, which is as slow as the slowest.
        batch_size: samples in a batch.
    """
    rates = [
        r["samples_per_second"] for r in metrics if r["event"] == "train" and r["stage"] == stage
    ]
    return float(batch_size / statistics.median(rates[NOT_COUNTED:]))


@contextmanager
def _processes() -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Running processes by index; what still runs at the end is stopped."""
    busy: dict[int, subprocess.Popen[bytes]] = {}
    try:
        yield busy
    finally:
        for process in busy.values():
            process.kill()
        for process in busy.values():
            process.wait()


def _start(config: TrainConfig, folder: Path) -> subprocess.Popen[bytes]:
    """Start a run, or go on with the one that lies there."""
    folder.mkdir(exist_ok=True)
    run = folder / "run"
    arguments = [*train_arguments(config, data_root=config.data_root), "--out", str(run), "--plain"]
    if any((run / "snapshots").glob("*")):
        (folder / WENT_ON).touch()
    environment = {**os.environ, "OMP_NUM_THREADS": str(config.threads)}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _collect(config: TrainConfig, folder: Path) -> Run | Failure:
    code = int((folder / "code").read_text())
    if code:
        lines = (folder / "log").read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        return Failure(config=config, code=code, reason=last)
    metrics = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return Run(
        config=config,
        folder=folder / "run",
        summary=json.loads((folder / "run" / "summary.json").read_text()),
        metrics=[json.loads(line) for line in metrics],
        data=json.loads((folder / "run" / "run.json").read_text())["data"],
        went_on=(folder / WENT_ON).exists(),
    )


def train_arguments(config: TrainConfig, *, data_root: str | None) -> list[str]:
    """``-m pipelocal train`` and the options that are not at their defaults; without ``--out``."""
    arguments = ["-m", "pipelocal", "train"]
    defaults = asdict(TrainConfig())
    for name, value in asdict(config).items():
        if name in ("out", "config", "plain") or value == defaults[name]:
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list | tuple):
            arguments += [f"--{option}", *map(str, value)]
        else:
            value = data_root if name == "data_root" else value
            arguments += [f"--{option}", str(value)]
    return arguments


# Figures


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
