"""Strangers call every port that a run opens: it ends as if nothing had been, or in one line."""

from __future__ import annotations

import os
import resource
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from pipelocal.ranks import lifeline, membership
from pipelocal.ranks.address import listen, own_address
from pipelocal.ranks.host import use_interface
from tests.launching import Ranks, free_port, launch, torchrun
from tests.strangers import Strangers
from tests.test_transparency import assert_same_bits, train_alone

TRAIN = ["--model", "mlp", "--stages", "3", "--max-steps", "60"]
FEW_FILES = 48
"""Open in one process at the start; a flood is larger."""


def launch_by_store(folder: Path, arguments: list[str], size: int, *, late_s: float = 0.5) -> Ranks:
    """Start ranks that meet at a TCP store of rank 0; the second comes late wherever ranks connect.

    So the ports that are open for milliseconds otherwise are found.
    """
    port = free_port()

    def before(rank: int) -> None:
        os.environ |= {
            "PIPELOCAL_INIT_METHOD": "env://",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        # Gloo never closes what strangers opened, and ends the process when there is room for no more.
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (FEW_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        )
        if rank == 1:
            new_group = dist.new_group

            def late_group(*args: Any, **kwargs: Any) -> object:
                time.sleep(late_s)
                return new_group(*args, **kwargs)

            def late(*args: Any, **kwargs: Any) -> dict[int, socket.socket]:
                time.sleep(late_s)
                return membership.meet_neighbours(*args, **kwargs)

            vars(lifeline)["meet_neighbours"] = late
            dist.new_group = late_group

    return launch(folder, arguments, size, before)


@pytest.mark.timeout(400)
def test_strangers_change_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Strangers(seed=1) as strangers:
        ranks = launch_by_store(tmp_path / "log", ["train", *TRAIN, "--out", str(out)], 2)
        assert ranks.wait() == [0, 0], ranks.output()
    # The store, the lifeline of the first rank, and of both ranks what gloo opens for two groups.
    assert len(strangers.calls) >= 6, strangers.calls
    assert_same_bits(train_alone(TRAIN, tmp_path / "alone"), out)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(2, 8))
def test_strangers_who_know_gloo_end_a_run_in_one_line_or_not_at_all(
    tmp_path: Path, seed: int
) -> None:
    """Gloo believes who names a peer's number: his connection takes the place of that peer's."""
    out = tmp_path / "run"
    arguments = ["train", *TRAIN, "--start-timeout", "20", "--timeout", "20", "--out", str(out)]
    with Strangers(seed, guess_gloo=True, seconds=300):
        ranks = launch_by_store(tmp_path / "log", arguments, 3)
        codes = ranks.wait()
    if codes == [0, 0, 0]:
        assert_same_bits(train_alone(TRAIN, tmp_path / "alone"), out)
        return
    assert all(codes), ranks.output()
    for rank in range(3):
        said = ranks.output(rank)
        assert "Traceback" not in said
        assert "pipelocal (rank" in said.strip().splitlines()[-1], said


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", [8, 9])
def test_strangers_change_nothing_under_torchrun(tmp_path: Path, seed: int) -> None:
    """The store is the agent's here."""
    out = tmp_path / "run"
    with Strangers(seed, seconds=300) as strangers:
        done = torchrun(3, ["train", *TRAIN, "--plain", "--out", str(out)])
    assert done.returncode == 0, done.stderr
    assert strangers.calls
    assert_same_bits(train_alone(TRAIN, tmp_path / "alone"), out)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_doctor_is_not_disturbed(tmp_path: Path) -> None:
    with Strangers(seed=10, seconds=300) as strangers:
        ranks = launch_by_store(tmp_path / "log", ["doctor", "--out", str(tmp_path)], 2)
        codes = ranks.wait()
    assert codes == [0, 0], ranks.output()
    assert strangers.calls


@pytest.mark.parametrize(
    ("given", "address", "interface"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "127.0.0.1", "lo"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "mine"}, None, "mine"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}, None, "lo"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "::1"}, None, None),
        ({}, None, None),
    ],
)
def test_ports_are_open_where_the_ranks_are(
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    address: str | None,
    interface: str | None,
) -> None:
    """On one host for that host alone; the lifeline listened everywhere, and gloo at the host's name."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_ADDR", socket.gethostname())
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    use_interface(None)
    assert os.environ.get("GLOO_SOCKET_IFNAME") == interface
    with listen() as server:
        assert server.getsockname()[0] == (address or own_address())
        assert server.getsockname()[0] not in ("0.0.0.0", "::")
