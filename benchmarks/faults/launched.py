"""A run under torchrun that is watched while something happens to it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.communication.network import DEVICE, Host

WORK = ["--model", "mlp", "--stages", "4", "--epochs", "40", "--log-every", "8", "--plain"]
"""920 batches."""
SNAPSHOTS = ["--snapshot-every", "20", "--keep-snapshots", "3"]
RANKS = 2
PATIENCE_S = 240.0
"""After which a trial has failed: a hang."""
POLL_S = 0.01


class Launched:
    """A run of two ranks, on this host or on two, started anew by torchrun when ranks end.

    Args:
        out: its folder.
        log: file for all that it prints.
        more: options beside those of all runs.
        hosts: the two ends of a link, with a rank on each; None for this host.
    """

    def __init__(
        self,
        out: Path,
        *,
        log: Path,
        more: Sequence[str] = (),
        hosts: tuple[Host, Host] | None = None,
    ) -> None:
        self.out = out
        self._log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--max-restarts", "3"]
        work = ["-m", "pipelocal", "train", *WORK, *SNAPSHOTS, *more, "--out", str(out)]
        if hosts is None:
            commands = [[*torchrun, "--standalone", "--nproc-per-node", str(RANKS), *work]]
        else:
            environment["GLOO_SOCKET_IFNAME"] = DEVICE
            where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", hosts[0].address]
            commands = [
                host.command([*torchrun, *where, "--node-rank", str(rank), *work])
                for rank, host in enumerate(hosts)
            ]
        self._processes = []
        for command in commands:
            with log.open("ab") as file:
                self._processes.append(
                    subprocess.Popen(command, stdout=file, stderr=file, env=environment)
                )

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._processes, *self.ranks().values()):
            process.kill()
        for process in self._processes:
            process.wait()

    def ended(self) -> bool:
        """Whether it is over."""
        return all(process.poll() is not None for process in self._processes)

    def well(self) -> bool:
        """Wait for its end; whether that was a good one."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return all(process.poll() == 0 for process in self._processes)

    def said(self) -> str:
        """All that it printed."""
        return self._log.read_text(errors="replace")

    def seconds_until(self, condition: Callable[[], bool], *, since: float) -> float | None:
        """Seconds from a moment of ``time.monotonic`` on; None if the run ended before."""
        while not condition():
            if self.ended() or time.monotonic() - since > PATIENCE_S:
                return None
            time.sleep(POLL_S)
        return time.monotonic() - since

    def gave_up(self) -> bool:
        """Whether some rank said that it cannot go on."""
        said = self.said()
        return any(f"pipelocal (rank {rank}): " in said for rank in range(RANKS))

    def goes_on(self) -> bool:
        """Whether it was started anew, and has found where."""
        said = self.said()
        return "going on after" in said or "beginning anew" in said

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes of the ranks that are alive."""
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if str(self.out) in words and "torch.distributed.run" not in words:
                try:
                    found[int(process.environ()["RANK"])] = process
                except (psutil.Error, KeyError):
                    continue
        return found


def same_bits(reference: Path, out: Path) -> bool:
    """Whether two runs ended with the same weights and optimizer states."""
    names = sorted(path.name for path in (reference / "stages").glob("stage-*.pt"))
    if not (out / "stages").is_dir():
        return False
    states = [
        [torch.load(run / "stages" / name, weights_only=True) for name in names]
        for run in (reference, out)
    ]
    return equal(*states)


def equal(a: Any, b: Any) -> bool:
    """Whether two structures hold the same bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
