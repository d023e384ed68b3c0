"""Callers prove that they are of the run; those who cannot hold up nobody."""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipelocal.errors import Interrupted, UserError
from pipelocal.ranks import membership
from pipelocal.ranks.membership import MOST_STRANGERS, meet_neighbours
from tests.launching import PATIENCE_S

SECRET = b"s" * 32


def nobody_failed() -> None:
    """What a rank looks at while it waits."""


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """Where rank 0 listens."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def meet_on_thread(**arguments: Any) -> Callable[[], dict[int, socket.socket]]:
    """Start a rank's meeting; what is returned waits for its end."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(meet_neighbours(**arguments))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait() -> dict[int, socket.socket]:
        thread.join(PATIENCE_S)
        assert found, "the meeting has no end"
        if isinstance(found[0], Exception):
            raise found[0]
        connections: dict[int, socket.socket] = found[0]
        return connections

    return wait


def rank_0(server: socket.socket, neighbours: set[int], **more: Any) -> Callable[[], Any]:
    """Rank 0, which is called by all its neighbours."""
    given = {"secret": SECRET, "check": nobody_failed, "timeout_s": PATIENCE_S} | more
    return meet_on_thread(server=server, rank=0, neighbours=neighbours, addresses={}, **given)


def caller(server: socket.socket, rank: int, **more: Any) -> Callable[[], Any]:
    """A rank that calls rank 0, and nobody else."""
    given = {"secret": SECRET, "check": nobody_failed, "timeout_s": PATIENCE_S} | more
    addresses = {0: server.getsockname()[:2]}
    own = socket.create_server(("127.0.0.1", 0))
    return meet_on_thread(server=own, rank=rank, neighbours={0}, addresses=addresses, **given)


def hello(nonce: bytes, rank: int, *, called: int = 0, secret: bytes = SECRET) -> bytes:
    """What a caller says, by the book."""
    own = secrets.token_bytes(32)
    ranks = rank.to_bytes(4, "big") + called.to_bytes(4, "big")
    proof = hmac.digest(secret, ranks + own + nonce + b"calls", "sha256")
    return rank.to_bytes(4, "big") + own + proof


def call(server: socket.socket) -> tuple[socket.socket, bytes]:
    """A connection, and the number drawn for it."""
    connection = socket.create_connection(server.getsockname())
    connection.settimeout(PATIENCE_S)
    return connection, connection.recv(32, socket.MSG_WAITALL)


def answered(connection: socket.socket) -> bool:
    """Whether the other end proves itself, and does not hang up."""
    try:
        return len(connection.recv(32, socket.MSG_WAITALL)) == 32
    except ConnectionResetError:
        return False


def test_two_ranks_meet(server: socket.socket) -> None:
    zero, one = rank_0(server, {1}), caller(server, 1)
    zero()[1].sendall(b"x")
    assert one()[0].recv(1) == b"x"


def test_silent_callers_hold_up_nobody(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than are served at a time, and none is ever too late."""
    monkeypatch.setattr(membership, "CALL_S", 1e9)
    crowd = [socket.create_connection(server.getsockname()) for _ in range(100)]
    zero = rank_0(server, {1, 2})
    crowd += [socket.create_connection(server.getsockname()) for _ in range(MOST_STRANGERS + 1)]
    one, two = caller(server, 1), caller(server, 2)
    assert set(zero()) == {1, 2}
    one()
    two()
    for stranger in crowd:
        stranger.close()


def test_a_proof_counts_once_for_one_rank_by_the_secret(server: socket.socket) -> None:
    """Wrong secrets, other ranks, what was said in another call, a second call of the same rank."""
    zero = rank_0(server, {1, 2})
    good, nonce = call(server)
    said = hello(nonce, 1)
    for wrong in (
        said,
        hello(nonce, 2),
        hello(nonce, 1, secret=b"t" * 32),
        b"\0\0\0\1" + bytes(64),
    ):
        replayed, _ = call(server)
        replayed.sendall(wrong)
        assert not answered(replayed)
    for rank, called in ((3, 0), (0, 0), (1, 1)):
        stranger, own = call(server)
        stranger.sendall(hello(own, rank, called=called))
        assert not answered(stranger)
    good.sendall(said)
    assert answered(good)
    again, own = call(server)
    again.sendall(hello(own, 1))
    assert not answered(again)
    two = caller(server, 2)
    there = zero()
    two()
    there[1].sendall(b"x")
    assert good.recv(1) == b"x"


def test_a_hello_in_pieces_is_taken(server: socket.socket) -> None:
    zero = rank_0(server, {1})
    connection, nonce = call(server)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in hello(nonce, 1):
        connection.sendall(bytes([byte]))
    assert answered(connection)
    zero()


def test_strangers_are_counted_where_a_rank_does_not_come(server: socket.socket) -> None:
    crowd = [socket.create_connection(server.getsockname()) for _ in range(3)]
    for stranger in crowd:
        stranger.sendall(bytes(68))
    text = r"^rank 1 did not come to the start within 1 s \(3 connections that proved nothing were"
    with pytest.raises(UserError, match=text):
        rank_0(server, {1}, timeout_s=1.0)()
    for stranger in crowd:
        stranger.close()


def test_ranks_of_two_runs_do_not_meet(server: socket.socket) -> None:
    one = caller(server, 1, timeout_s=1.0)
    with pytest.raises(UserError, match=r"^rank 1 did not come to the start within 1 s"):
        rank_0(server, {1}, secret=b"t" * 32, timeout_s=1.0)()
    with pytest.raises(UserError, match=r"rank 0 did not come to the start within 1 s"):
        one()


def test_who_listens_and_echoes_proves_nothing() -> None:
    """He is called again, for a rank may have turned this one away to serve others."""
    done = threading.Event()

    def check() -> None:
        if done.is_set():
            raise Interrupted("seen enough")

    with socket.create_server(("127.0.0.1", 0)) as mirror:
        one = caller(mirror, 1, check=check)
        for _ in range(2):
            connection, _ = mirror.accept()
            with connection:
                connection.sendall(bytes(32))
                heard = connection.recv(68, socket.MSG_WAITALL)
                connection.sendall(heard[-32:])
                assert connection.recv(1) == b""
        done.set()
        with pytest.raises(Interrupted):
            one()


def test_a_closed_port_is_told_at_once() -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    one = caller(closed, 1)  # has the address
    closed.close()
    with pytest.raises(UserError, match=r"rank 1 cannot reach rank 0 at 127.0.0.1 port \d+ \("):
        one()


def test_a_failure_elsewhere_ends_the_wait(server: socket.socket) -> None:
    def failed() -> None:
        raise Interrupted("rank 2, out of luck")

    with pytest.raises(Interrupted, match="out of luck"):
        rank_0(server, {1}, check=failed)()
