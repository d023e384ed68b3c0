"""Real ranks for tests: processes with real sockets, forked so that they start in milliseconds.

``launch`` is a world of its own: no torchrun, the ranks meet through a file. ``torchrun`` is the
real launcher, some seconds slower.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch._dynamo  # noqa: F401  here once, and not in every forked rank
import torch.distributed as dist

from pipelocal import cli
from pipelocal.ranks.breakable import BREAKABLE
from pipelocal.ranks.world import World
from pipelocal.system.patience import Patience

FORK = multiprocessing.get_context("fork")

PATIENCE_S = 300.0
"""How long a test waits for what must come. Many times what it takes, as the machine may be busy with
other work: only what hangs exceeds it."""


FOR_EVER = 10_000.0
"""A --timeout that nobody waits for: what ends such a run has noticed a failure, and not lost patience."""


def until(condition: Callable[[], object], otherwise: Callable[[], str] = lambda: "") -> None:
    """Wait until a condition holds.

    Args:
        condition: looked at again and again; may raise to end the wait.
        otherwise: what to say if it never does.

    Raises:
        AssertionError: it did not within :data:`PATIENCE_S`.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s in vain; {otherwise()}"
        time.sleep(0.01)


def free_port() -> int:
    """A port that nothing listens at, below those that the system hands out by itself."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@dataclass
class Ranks:
    """Rank processes under way or ended."""

    processes: list[BaseProcess]
    folder: Path

    def wait(self, ranks: Collection[int] | None = None) -> list[int]:
        """Exit codes of these ranks, or of all; kills every rank and fails if they do not end."""
        waited_for = range(len(self.processes)) if ranks is None else ranks
        deadline = time.monotonic() + PATIENCE_S
        for rank in waited_for:
            self.processes[rank].join(max(0.0, deadline - time.monotonic()))
        left = [rank for rank in waited_for if self.processes[rank].is_alive()]
        if left:
            for process in self.processes:
                process.kill()
        assert not left, f"ranks {left} still ran after {PATIENCE_S:g} s; output:\n{self.output()}"
        codes = [self.processes[rank].exitcode for rank in waited_for]
        return [-1 if code is None else code for code in codes]

    def kill(self, rank: int, what: int = signal.SIGKILL) -> None:
        """Send a signal to one rank."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, what)

    def output(self, rank: int | None = None) -> str:
        """What a rank, or every rank, has printed on both streams."""
        ranks = range(len(self.processes)) if rank is None else [rank]
        return "".join((self.folder / f"rank-{r}.log").read_text() for r in ranks)

    def wait_for_output(self, rank: int, text: str) -> None:
        """Wait until a rank has printed ``text``."""

        def printed() -> bool:
            if text in self.output(rank):
                return True
            assert self.processes[rank].is_alive() or text in self.output(rank), self.output()
            return False

        until(printed, lambda: f"no '{text}' in:\n{self.output()}")


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
    """Start ``body(rank)`` in ``size`` forked processes that :class:`World` can join.

    A library call that an earlier test abandoned may hold one of the C library's locks while it fails, and a
    process forked at that moment would wait for that lock for ever: so first every such call has to end.
    """
    until(lambda: not abandoned_calls(), lambda: "a call that a test abandoned does not end")
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


def abandoned_calls() -> list[threading.Thread]:
    """The threads on which :func:`breakable` has left a call under way."""
    return [thread for thread in threading.enumerate() if thread.name == BREAKABLE]


def run_script(script: Path, size: int = 1) -> str:
    """Run a Python script in its folder to a good end, in ``size`` forked processes; what they print."""

    def body(_rank: int) -> None:
        os.chdir(script.parent)
        sys.path.insert(0, str(script.parent))
        sys.argv = [str(script)]
        runpy.run_path(str(script), run_name="__main__")

    ranks = start(script.parent / f"log-{size}", body, size)
    assert ranks.wait() == [0] * size, ranks.output()
    return ranks.output()


def python(script: Path) -> str:
    """Run a Python script in its folder to a good end, in an interpreter of its own; what it prints."""
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=script.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lose_patience_at(file: Path) -> None:
    """On a rank of a run with ``--timeout`` :data:`FOR_EVER`: from when ``file`` is there, it is 2 s.

    So healthy ranks have all the time that they need, however busy the machine is, and a test makes the file
    when one of them hangs.
    """
    left = Patience.left

    def less(self: Patience) -> float:
        if FOR_EVER / 2 < self._left < math.inf and file.exists():
            self._left = 2.0
        return left(self)

    Patience.left = less  # type: ignore[method-assign]


def assert_named(rank: int, said: str) -> None:
    """That a rank was said not to answer; a healthy one may be late with its answer as well."""
    silent = re.search(r"; ranks? ([\d, ]+) do(es)? not answer: stopped, or cut off", said)
    assert silent is not None, said
    assert str(rank) in silent[1].split(", "), said


def run_ranks(folder: Path, arguments: Sequence[str], size: int) -> None:
    """Run ``pipelocal ARGUMENTS`` on ``size`` ranks to a good end."""
    ranks = launch(folder, arguments, size)
    codes = ranks.wait()
    assert codes == [0] * size, f"exit codes {codes}; output:\n{ranks.output()}"


def torchrun(size: int, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run ``pipelocal ARGUMENTS`` under the real torchrun; never raises for an exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(size), "-m", "pipelocal", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def world_of(rank: int) -> World:
    """The world of a process that :func:`start` made, with its process group open."""
    world = World.from_environment()
    dist.init_process_group(
        "gloo", store=dist.PrefixStore("group", world.store), rank=rank, world_size=world.size
    )
    return world
