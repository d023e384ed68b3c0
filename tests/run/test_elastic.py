"""A job whose nodes come and go: torchrun starts all ranks anew, and the stages go to those there are."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from pipelocal.checkpoint.snapshot import SnapshotFolder
from pipelocal.ranks.meeting import meet
from tests.interrupted import EVERY
from tests.launching import PATIENCE_S, free_port, until
from tests.test_transparency import assert_same_bits, train_alone

LONG = ["--model", "mlp", "--stages", "3", "--epochs", "40", "--log-every", "8", *EVERY]
"""920 batches."""


def _agent(port: int, out: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2"]
    command += ["--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "elastic"]
    command += ["--rdzv-conf", "last_call_timeout=4", "--local-addr", "127.0.0.1"]
    command += ["-m", "pipelocal", "train", *LONG, "--plain", "--out", str(out)]
    environment = {
        **os.environ,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }  # docs/recovery.md says why
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment)


def _kill(agent: subprocess.Popen[bytes]) -> None:
    """With its rank, as a host that loses its power."""
    if agent.poll() is None:
        for process in [*psutil.Process(agent.pid).children(recursive=True), agent]:
            process.kill()
    agent.wait()


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def _wait_for(out: Path, steps: int) -> None:
    until(lambda: (SnapshotFolder(out).steps() or [0])[0] >= steps)


@pytest.mark.slow
def test_a_node_that_dies_and_one_that_comes(tmp_path: Path) -> None:
    """Two ranks, then one, then two again, which torchrun counts differently; and the same bits."""
    out, log, port = tmp_path / "run", tmp_path / "log", free_port()
    first = _agent(port, out, log)
    until(lambda: _listens(port), log.read_text)  # the first one keeps the store
    second = _agent(port, out, log)
    agents = [first, second]
    try:
        _wait_for(out, 10)
        _kill(second)
        killed_at = SnapshotFolder(out).steps()[0]
        _wait_for(out, killed_at + 20)
        assert "on 1 rank(s)" in log.read_text()
        agents.append(_agent(port, out, log))
        assert first.wait(PATIENCE_S) == 0, log.read_text()
        assert agents[-1].wait(PATIENCE_S) == 0, log.read_text()
    finally:
        for agent in agents:
            _kill(agent)
    said = log.read_text()
    assert said.count("on 2 rank(s)") == 2, said
    assert_same_bits(train_alone(LONG, tmp_path / "whole"), out)


def test_ranks_of_an_attempt_find_each_other_among_words_of_earlier_ones(tmp_path: Path) -> None:
    """The second time with fewer ranks, the third time with more, in one store."""
    path = str(tmp_path / "store")
    tokens = set()
    for size in (3, 2, 4):
        found: dict[int, str] = {}

        def come(rank: int, size: int = size, found: dict[int, str] = found) -> None:
            time.sleep(0.05 * ((rank + size) % 3))
            found[rank] = meet(dist.FileStore(path, -1), rank, size, timeout_s=PATIENCE_S)

        threads = [threading.Thread(target=come, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == size
        assert len(set(found.values())) == 1
        tokens |= set(found.values())
    assert len(tokens) == 3


def test_a_rank_that_does_not_come(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        meet(dist.FileStore(str(tmp_path / "store"), -1), 0, 2, timeout_s=0.2)
