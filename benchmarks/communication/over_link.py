"""Two ranks, each on a host of its own, as torchrun starts them on two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import BenchmarkError
from benchmarks.communication.network import DEVICE, Host
from pipelocal.config import TrainConfig

PORT = "29500"
"""Of the first host, which is this run's alone."""

Hosts = tuple[Host, Host]


def launch(hosts: Hosts, arguments: Sequence[str], *, what: str) -> str:
    """Run a script or module with one rank on each host and one thread a rank; rank 0's output.

    Args:
        hosts: the two ends of a link.
        arguments: such as ``-m pipelocal train``, or a script and its options.
        what: names the run in the error.

    Raises:
        BenchmarkError: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": DEVICE}
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        processes = []
        for rank, host in enumerate(hosts):
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
            command += ["--nproc-per-node", "1", "--node-rank", str(rank)]
            command += ["--master-addr", hosts[0].address, "--master-port", PORT, *arguments]
            out, errors = Path(scratch, f"out{rank}"), Path(scratch, f"errors{rank}")
            with out.open("wb") as out_file, errors.open("wb") as errors_file:
                processes.append(
                    subprocess.Popen(
                        host.command(command), stdout=out_file, stderr=errors_file, env=environment
                    )
                )
        try:
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.kill()  # what it started ends with its host
                process.wait()
        if any(codes):
            texts = [Path(scratch, f"errors{rank}").read_text() for rank in range(len(hosts))]
            lines = [line for line in "\n".join(texts).splitlines() if "rror" in line]
            raise BenchmarkError(f"{what}: {lines[0] if lines else 'failed'}")
        return Path(scratch, "out0").read_text()


def train(
    hosts: Hosts | None, config: TrainConfig, *, entry: Sequence[str] = ("-m", "pipelocal")
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """``pipelocal train``; the content of ``summary.json`` and the lines of ``metrics.jsonl``.

    Args:
        hosts: the two ends of a link; None for two ranks of this host.
        config: the options; ``out`` is not used.
        entry: what Python runs, and its first arguments.

    Raises:
        BenchmarkError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="pipelocal-bench-") as scratch:
        out = Path(scratch, "run")
        _, _, *options = common.train_arguments(config, data_root=config.data_root)
        arguments = [*entry, *options, "--plain", "--out", str(out)]
        what = f"{config.model}, {config.objective}, two ranks"
        if hosts is None:
            common.launch(2, arguments, what=what)
        else:
            launch(hosts, arguments, what=what)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
        return summary, [json.loads(line) for line in lines]
