"""Lost processes are noticed at once, and ranks that leave in order alarm nobody."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from pipelocal.errors import StageError
from pipelocal.ranks.address import own_address
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import World
from tests.launching import PATIENCE_S, start

NAMES = {rank: f"stage {rank + 1} (rank {rank})" for rank in range(3)}


def plane(rank: int) -> ControlPlane:
    control = ControlPlane(World.from_environment())
    neighbours = {r: NAMES[r] for r in (rank - 1, rank + 1) if r in NAMES}
    control.watch_neighbours(neighbours, stage=rank + 1)
    return control


def test_a_killed_process_is_named_by_its_neighbours(tmp_path: Path) -> None:
    """Also where gloo stays silent: a send that was half written when its receiver was killed."""

    def body(rank: int) -> None:
        control = plane(rank)
        if rank == 1:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        text = rf"stage {rank + 1}: lost the connection to stage 2 \(rank 1\): its process is gone"
        with pytest.raises(StageError, match=text) as error:  # noqa: PT012  it raises when it raises
            while time.monotonic() < deadline:
                control.check()
                time.sleep(0.01)
        assert error.value.symptom

    ranks = start(tmp_path, body, 3)
    assert ranks.wait() == [0, -signal.SIGKILL, 0], ranks.output()


def test_who_says_farewell_is_not_missed(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        control = plane(rank)
        if rank != 1:
            control.leave(timeout_s=PATIENCE_S)
            return
        control.leave(timeout_s=PATIENCE_S)
        time.sleep(0.5)
        control.check()

    ranks = start(tmp_path, body, 3)
    assert ranks.wait() == [0, 0, 0], ranks.output()


def test_strangers_are_turned_away(tmp_path: Path) -> None:
    """Something else that connects to the port is not taken for the neighbour."""

    def body(rank: int) -> None:
        world = World.from_environment()
        if rank == 1:
            host, port = json.loads(world.store.get("lifeline/0"))
            for word in (b"GET / HTTP/1.0\r\n\r\n", b""):
                with socket.create_connection((host, port)) as stranger:
                    stranger.sendall(word)
        control = ControlPlane(world)
        control.watch_neighbours({1 - rank: NAMES[1 - rank]}, stage=rank + 1)
        control.check()
        control.leave(timeout_s=PATIENCE_S)

    ranks = start(tmp_path, body, 2)
    assert ranks.wait() == [0, 0], ranks.output()


def test_own_address_is_the_one_that_leads_to_the_master(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert own_address() == "127.0.0.1"
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    with pytest.raises(ValueError, match=r"'no-such-host.invalid' leads to no address"):
        own_address()
