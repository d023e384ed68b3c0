"""Real ranks for tests: processes with real sockets, forked so that they start in milliseconds.

``launch`` is a world of its own: no torchrun, the ranks meet through a file. ``torchrun`` is the
real launcher, some seconds slower.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import sklearn.datasets  # noqa: F401  here once, and not in every forked rank 0
import torch.distributed as dist

from pipelocal import cli
from pipelocal.world import World

FORK = multiprocessing.get_context("fork")


@dataclass
class Ranks:
    """Rank processes under way or ended."""

    processes: list[BaseProcess]
    folder: Path

    def wait(self, seconds: float) -> list[int]:
        """All exit codes; fails, and kills what is left, if some rank is still there by then."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        left = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for rank in left:
            self.kill(rank)
        assert not left, f"ranks {left} still ran after {seconds} s; output:\n{self.output()}"
        return [
            process.exitcode if process.exitcode is not None else -1 for process in self.processes
        ]

    def kill(self, rank: int, what: int = signal.SIGKILL) -> None:
        """Send a signal to one rank."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, what)

    def output(self, rank: int | None = None) -> str:
        """What a rank, or every rank, has printed on both streams."""
        ranks = range(len(self.processes)) if rank is None else [rank]
        return "".join((self.folder / f"rank-{r}.log").read_text() for r in ranks)

    def wait_for_output(self, rank: int, text: str, seconds: float = 30.0) -> None:
        """Wait until a rank has printed ``text``."""
        deadline = time.monotonic() + seconds
        while text not in self.output(rank):
            assert time.monotonic() < deadline, f"no '{text}' in:\n{self.output()}"
            assert self.processes[rank].is_alive(), self.output()
            time.sleep(0.02)


def launch(
    folder: Path,
    arguments: Sequence[str] | Sequence[Sequence[str]],
    size: int,
    before: Callable[[int], None] | None = None,
) -> Ranks:
    """Start ``pipelocal ARGUMENTS`` on ``size`` ranks.

    Args:
        folder: for the meeting point and the ranks' output.
        arguments: one command line for all ranks, or one for each.
        size: number of ranks.
        before: run on each rank first, with its number.
    """
    each = [
        [str(a) for a in (arguments if isinstance(arguments[0], str) else arguments[rank])]
        for rank in range(size)
    ]

    def body(rank: int) -> None:
        if before is not None:
            before(rank)
        cli.main(each[rank])

    return start(folder, body, size)


def start(folder: Path, body: Callable[[int], None], size: int) -> Ranks:
    """Start ``body(rank)`` in ``size`` forked processes that :class:`World` can join."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting_point = folder / f"meet-{time.monotonic_ns()}"

    def child(rank: int) -> None:
        with (folder / f"rank-{rank}.log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "PIPELOCAL_INIT_METHOD": f"file://{meeting_point}",
        }
        body(rank)

    for rank in range(size):
        (folder / f"rank-{rank}.log").touch()
    processes: list[BaseProcess] = [
        FORK.Process(target=child, args=(rank,)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    return Ranks(processes, folder)


def run_ranks(folder: Path, arguments: Sequence[str], size: int, seconds: float = 60.0) -> None:
    """Run ``pipelocal ARGUMENTS`` on ``size`` ranks to a good end."""
    ranks = launch(folder, arguments, size)
    codes = ranks.wait(seconds)
    assert codes == [0] * size, f"exit codes {codes}; output:\n{ranks.output()}"


def torchrun(
    size: int, arguments: Sequence[str], seconds: float = 90.0
) -> subprocess.CompletedProcess[str]:
    """Run ``pipelocal ARGUMENTS`` under the real torchrun; never raises for an exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(size), "-m", "pipelocal", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def world_of(rank: int) -> World:
    """The world of a process that :func:`start` made, with its process group open."""
    world = World.from_environment()
    dist.init_process_group(
        "gloo", store=dist.PrefixStore("group", world.store), rank=rank, world_size=world.size
    )
    return world
