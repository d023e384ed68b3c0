"""Ranks as forks of the benchmark, which has loaded PyTorch: many short runs would else spend most of
their time on that. What they run is what ``skewed.py`` runs under torchrun.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.common import BenchmarkError
from benchmarks.compression import skewed
from pipelocal.cli import main

FORK = multiprocessing.get_context("fork")
TOGETHER_S = 60.0
"""How long the other ranks may go on when one has ended: they leave together, or learn of its failure."""


def train(ranks: int, arguments: Sequence[str], folder: Path, *, what: str) -> None:
    """Run ``skewed.py`` on as many ranks.

    Args:
        ranks: number of processes.
        arguments: of ``skewed.py``.
        folder: empty, for what the ranks print and to meet in.
        what: names the run in the error.

    Raises:
        BenchmarkError: it failed; the text has the first line that says why.
    """
    processes: list[BaseProcess] = [
        FORK.Process(target=_rank, args=(rank, ranks, arguments, folder), daemon=True)
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            process.start()
        processes[0].join()
        for process in processes[1:]:
            process.join(TOGETHER_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    if any(process.exitcode for process in processes):
        printed = "".join((folder / f"rank-{rank}.log").read_text() for rank in range(ranks))
        lines = [line for line in printed.splitlines() if "rror" in line]
        raise BenchmarkError(f"{what}: {lines[0] if lines else 'failed'}")


def _rank(rank: int, ranks: int, arguments: Sequence[str], folder: Path) -> None:
    with (folder / f"rank-{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "PIPELOCAL_INIT_METHOD": f"file://{folder / 'meeting'}",
    }
    main(skewed.begin(list(arguments)))
