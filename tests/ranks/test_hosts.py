"""Hosts with a rank each: network namespaces of this machine, joined by links that can be bad."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.communication import network
from benchmarks.communication.network import DEVICE, Host, Shape, some_hosts
from pipelocal.checkpoint.snapshot import SnapshotFolder
from tests.interrupted import EVERY
from tests.launching import PATIENCE_S, assert_named, until
from tests.test_transparency import MODELS, assert_same_bits, train_alone

LACKING = network.missing()
pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(LACKING is not None, reason=f"this machine lacks {LACKING}"),
]

SHORT = ["--model", "mlp", "--stages", "4", "--epochs", "1"]
LONG = ["--model", "mlp", "--stages", "4", "--epochs", "20", "--log-every", "8", *EVERY]


@contextmanager
def launched(
    hosts: list[Host],
    options: list[str],
    log: Path,
    *,
    restarts: int = 0,
    interface: str | None = DEVICE,
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """``torchrun`` on every host, as one would type it there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if interface is not None:
        environment["GLOO_SOCKET_IFNAME"] = interface
    agents = []
    for number, host in enumerate(hosts):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(hosts))]
        command += ["--node-rank", str(number), "--nproc-per-node", "1"]
        command += ["--master-addr", hosts[0].address, "--master-port", "29500"]
        command += ["--max-restarts", str(restarts), "-m", "pipelocal", "train", *options]
        with log.open("ab") as file:
            agents.append(
                subprocess.Popen(host.command(command), stdout=file, stderr=file, env=environment)
            )
    try:
        yield agents
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


def _ended_well(agents: list[subprocess.Popen[bytes]], log: Path) -> None:
    codes = [agent.wait(PATIENCE_S) for agent in agents]
    assert codes == [0] * len(agents), log.read_text()


@pytest.mark.parametrize(
    ("count", "shape"),
    [
        pytest.param(2, Shape(), id="two"),
        pytest.param(4, Shape(), id="four", marks=pytest.mark.slow),
        pytest.param(
            4,
            Shape(bits_per_s=2e7, one_way_s=0.02, loss=0.01),
            id="four, 20 Mbit/s, 20 ms, 1 % lost",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_hosts_equal_one_process(tmp_path: Path, count: int, shape: Shape) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    with some_hosts(count, shape) as hosts:
        options = [*SHORT, "--plain", "--out", str(out)]
        with launched(hosts, options, log) as agents:
            _ended_well(agents, log)
    assert_same_bits(train_alone(SHORT, tmp_path / "alone"), out)


@pytest.mark.slow
def test_replicas_on_four_hosts_equal_one_process(tmp_path: Path) -> None:
    """With the interface named by an option in place of the environment."""
    out, log = tmp_path / "run", tmp_path / "log"
    options = ["--model", f"{MODELS}:dropout", "--stages", "3", "--replicas", "1,2,1"]
    options += ["--objective", "greedy", "--max-steps", "40", "--lr", "0.05"]
    with some_hosts(4, Shape()) as hosts:
        own = ["--interface", DEVICE, "--plain", "--out", str(out)]
        with launched(hosts, [*options, *own], log, interface=None) as agents:
            _ended_well(agents, log)
    assert_same_bits(train_alone(options, tmp_path / "alone"), out)


@pytest.mark.slow
@pytest.mark.parametrize("cut_off", [1, 3])
def test_a_host_is_cut_off_and_comes_back(tmp_path: Path, cut_off: int) -> None:
    """For longer than the timeout: the ranks end, torchrun starts them anew, and they go on."""
    out, log = tmp_path / "run", tmp_path / "log"
    options = [*LONG, "--timeout", "15", "--plain", "--out", str(out)]
    with some_hosts(4, Shape()) as hosts, launched(hosts, options, log, restarts=3) as agents:
        until(SnapshotFolder(out).steps)
        hosts[cut_off].cut_off()
        until(lambda: "not answer: stopped, or cut off" in log.read_text(), log.read_text)
        said = log.read_text()
        hosts[cut_off].reconnect()
        _ended_well(agents, log)
    assert_named(cut_off, said)
    assert_same_bits(train_alone(LONG, tmp_path / "alone"), out)
