"""Runs of ``pipelocal train`` in one process each, several at a time; they can be kept, and gone on with."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.resolve import blueprint_of
from pipelocal.config.training import train
from pipelocal.system.strict_json import to_json

POLL_S = 0.1


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


def metrics_here(config: TrainConfig) -> list[dict[str, Any]]:
    """Train in this process; the lines of ``metrics.jsonl``, of several ranks on rank 0 alone."""
    # One folder for all ranks, which compare their options.
    run, rank = os.environ.get("TORCHELASTIC_RUN_ID", os.getpid()), int(os.environ.get("RANK", 0))
    out = Path(tempfile.gettempdir(), f"pipelocal-bench-{run}")
    try:
        train(replace(config, out=str(out)), stream=io.StringIO())
        if rank:
            return []
        return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    finally:
        if not rank:
            shutil.rmtree(out, ignore_errors=True)


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
