"""Scripts and ``pipelocal train`` over several ranks, by torchrun."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError
from benchmarks.training import train_arguments
from pipelocal.config import TrainConfig

NOT_COUNTED = 2
"""First records of a run, in which the pipeline fills and the processes warm up."""


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
