"""Ranks on hosts of their own, one on each, as torchrun starts them on several nodes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import torchrun, training
from benchmarks.common import BenchmarkError
from benchmarks.communication.network import Host
from pipelocal.config import TrainConfig

Hosts = Sequence[Host]


def launch(hosts: Hosts, arguments: Sequence[str], *, what: str, pinned: bool = False) -> str:
    """Run a script or module with one rank on each host and one thread a rank; rank 0's output.

    Args:
        hosts: the ends of the links.
        arguments: such as ``-m pipelocal train``, or a script and its options.
        what: names the run in the error.
        pinned: whether every rank keeps to a core of its own.

    Raises:
        BenchmarkError: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": hosts[0].device}
    port = str(_free_port())
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        processes = []
        try:
            for rank, host in enumerate(hosts):
                command = ["taskset", "-c", str(cores[rank])] if pinned else []
                command += [sys.executable, "-m", "torch.distributed.run"]
                command += ["--nnodes", str(len(hosts)), "--nproc-per-node", "1"]
                command += ["--node-rank", str(rank), "--master-addr", hosts[0].address]
                command += ["--master-port", port, *arguments]
                out, errors = Path(scratch, f"out{rank}"), Path(scratch, f"errors{rank}")
                with out.open("wb") as out_file, errors.open("wb") as errors_file:
                    processes.append(
                        subprocess.Popen(
                            host.command(command),
                            stdout=out_file,
                            stderr=errors_file,
                            env=environment,
                        )
                    )
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.terminate()  # torchrun ends what it started
                process.wait()
        if any(codes):
            texts = [Path(scratch, f"errors{rank}").read_text() for rank in range(len(hosts))]
            lines = [line for line in "\n".join(texts).splitlines() if "rror" in line]
            raise BenchmarkError(f"{what}: {lines[0] if lines else 'failed'}")
        return Path(scratch, "out0").read_text()


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def train(
    hosts: Hosts | None,
    config: TrainConfig,
    *,
    entry: Sequence[str] = ("-m", "pipelocal"),
    pinned: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """``pipelocal train``; the content of ``summary.json`` and the lines of ``metrics.jsonl``.

    Args:
        hosts: the ends of the links; None for two ranks of this host under one torchrun.
        config: the options; ``out`` is not used.
        entry: what Python runs, and its first arguments.
        pinned: see :func:`launch`.

    Raises:
        BenchmarkError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        out = Path(scratch, "run")
        _, _, *options = training.train_arguments(config, data_root=config.data_root)
        arguments = [*entry, *options, "--plain", "--out", str(out)]
        what = f"{config.model}, {config.objective}, {2 if hosts is None else len(hosts)} ranks"
        if hosts is None:
            torchrun.launch(2, arguments, what=what)
        else:
            launch(hosts, arguments, what=what, pinned=pinned)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
        return summary, [json.loads(line) for line in lines]
