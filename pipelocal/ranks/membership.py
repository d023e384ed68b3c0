"""Connects neighbouring ranks on ports to which anyone may connect.

Both ends prove that they know the secret of the run, which itself is never sent::

    caller                                             rank that listens
               connects                       --->
                                              <---     a number drawn for this call alone
               its rank, a number of its own,
               proof of both                  --->     a stranger: closes, without a word
               a stranger: calls again        <---     proof of both

All calls are served concurrently, each with its own deadline, so that a silent caller delays nobody.
"""

from __future__ import annotations

import hmac
import math
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass

from pipelocal.errors import NotMet
from pipelocal.system.patience import Patience

SECRET_BYTES = 32
NONCE_BYTES = 32
RANK_BYTES = 4
PROOF_BYTES = 32

CALL_S = 5.0
"""Seconds within which a caller must have proved itself, or a called rank must have answered."""

CONNECT_TIMEOUT_S = 20.0
"""Seconds without a connection after which a rank counts as unreachable."""

MOST_STRANGERS = 64
"""Most concurrent callers without a proof; beyond that the oldest is dropped. A rank proves itself within
milliseconds, and calls again if it was dropped."""

POLL_S = 0.1

Talk = Generator[int, bytes, int]
"""One end of a call: yields the number of bytes it needs next, and returns the proven rank."""


class _Stranger(Exception):
    """The other end failed to prove itself."""


@dataclass(eq=False)
class _Call:
    """A connection whose other end has yet to prove itself."""

    connection: socket.socket
    talk: Talk
    wanted: int
    deadline: float
    other: int | None
    """The rank that was called; None if the other end called."""
    heard: bytes = b""


def meet_neighbours(
    server: socket.socket,
    rank: int,
    neighbours: Collection[int],
    addresses: Mapping[int, tuple[str, int]],
    secret: bytes,
    *,
    check: Callable[[], None],
    timeout_s: float,
) -> dict[int, socket.socket]:
    """Connect to every neighbour, accepting only ranks that know the secret.

    Args:
        server: where this rank listens.
        rank: this rank.
        neighbours: the ranks to be connected to.
        addresses: of those neighbours that this rank calls; the others call.
        secret: known to the ranks of this run.
        check: raises when the wait has become pointless.
        timeout_s: seconds to wait for all of them.

    Raises:
        NotMet: a neighbour cannot be reached, or does not connect.
    """
    meeting = _Meeting(server, rank, neighbours, addresses, secret)
    try:
        return meeting.hold(check, timeout_s)
    finally:
        meeting.close()


class _Meeting:
    """All calls from and to one rank; see :func:`meet_neighbours`."""

    def __init__(
        self,
        server: socket.socket,
        rank: int,
        neighbours: Collection[int],
        addresses: Mapping[int, tuple[str, int]],
        secret: bytes,
    ) -> None:
        server.setblocking(False)
        self._server = server
        self._rank = rank
        self._missing = set(neighbours)
        self._addresses = addresses
        self._secret = secret
        self._calls: list[_Call] = []  # the oldest first
        self._there: dict[int, socket.socket] = {}
        self._turned_away = 0
        self._reached: set[int] = set()
        self._called_at: dict[int, float] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)

    def hold(self, check: Callable[[], None], timeout_s: float) -> dict[int, socket.socket]:
        """Serve calls until all neighbours are connected."""
        patience, reach = Patience(timeout_s), Patience(CONNECT_TIMEOUT_S)
        for other in self._addresses:
            self._call(other)
        while self._missing:
            check()
            if patience.over():
                raise NotMet(
                    f"rank {min(self._missing)} did not come to the start within {timeout_s:g} s"
                    + self._strangers()
                )
            for key, _ in self._selector.select(POLL_S):
                if key.data is None:
                    self._accept()
                elif key.data in self._calls:
                    self._hear(key.data)
            self._look_at_deadlines(out_of_reach=reach.over())
        return self._there

    def close(self) -> None:
        """Close everything except the connections to neighbours."""
        for call in list(self._calls):
            self._end(call)
        self._selector.close()

    def _strangers(self) -> str:
        if not self._turned_away:
            return ""
        return f" ({self._turned_away} connections that proved nothing were turned away)"

    def _accept(self) -> None:
        """Accept pending calls, but only so many that all can be served."""
        for _ in range(MOST_STRANGERS):
            try:
                connection, _ = self._server.accept()
            except BlockingIOError:
                return
            except OSError:  # the caller has left, or this process may open no more
                time.sleep(POLL_S / 10)
                return
            strangers = [call for call in self._calls if call.other is None]
            if len(strangers) >= MOST_STRANGERS:
                self._turn_away(strangers[0])
            connection.setblocking(False)
            self._begin(connection, self._listening(connection), None)

    def _call(self, other: int) -> None:
        host, port = self._addresses[other]
        self._called_at[other] = time.monotonic()
        connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        connection.setblocking(False)
        try:
            connection.connect((host, port))
        except BlockingIOError:
            pass  # under way: that it failed is found when it is read from
        except OSError as error:
            connection.close()
            raise self._out_of_reach(other, error) from error
        self._begin(connection, self._calling(connection, other), other)

    def _begin(self, connection: socket.socket, talk: Talk, other: int | None) -> None:
        call = _Call(connection, talk, 0, time.monotonic() + CALL_S, other)
        self._calls.append(call)
        self._selector.register(connection, selectors.EVENT_READ, call)
        try:
            call.wanted = next(talk)
        except (OSError, _Stranger):
            self._turn_away(call)

    def _hear(self, call: _Call) -> None:
        try:
            heard = call.connection.recv(call.wanted - len(call.heard))
            if not heard:
                raise _Stranger
            call.heard += heard
            if len(call.heard) == call.wanted:
                word, call.heard = call.heard, b""
                call.wanted = call.talk.send(word)
                if call.other is not None:
                    # It counts this rank as come, and would refuse a second call.
                    call.deadline = math.inf
        except StopIteration as end:
            self._selector.unregister(call.connection)
            self._calls.remove(call)
            call.connection.setblocking(True)
            self._missing.remove(end.value)
            self._there[end.value] = call.connection
        except (BlockingIOError, InterruptedError):
            pass
        except (ConnectionResetError, BrokenPipeError, _Stranger):
            self._turn_away(call)
        except OSError as error:
            self._turn_away(call)
            if call.other is not None:
                raise self._out_of_reach(call.other, error) from error

    def _look_at_deadlines(self, *, out_of_reach: bool) -> None:
        now = time.monotonic()
        for call in list(self._calls):
            if call.other is not None and call.other not in self._reached:
                if _is_connected(call.connection):
                    self._reached.add(call.other)
                elif out_of_reach:
                    raise self._out_of_reach(call.other, TimeoutError("no answer"))
            if now > call.deadline:
                self._turn_away(call)
        under_way = {call.other for call in self._calls}
        for other in self._missing & self._addresses.keys() - under_way:
            if now > self._called_at[other] + POLL_S:
                self._call(other)

    def _turn_away(self, call: _Call) -> None:
        self._end(call)
        self._turned_away += call.other is None

    def _end(self, call: _Call) -> None:
        self._selector.unregister(call.connection)
        self._calls.remove(call)
        call.connection.close()

    def _out_of_reach(self, other: int, error: OSError) -> NotMet:
        host, port = self._addresses[other]
        return NotMet(
            f"rank {self._rank} cannot reach rank {other} at {host} port {port} ({error}): let ranks "
            f"connect to each other on any port, and set MASTER_ADDR to an address that all can reach"
        )

    def _listening(self, connection: socket.socket) -> Talk:
        own = secrets.token_bytes(NONCE_BYTES)
        connection.sendall(own)
        hello = yield RANK_BYTES + NONCE_BYTES + PROOF_BYTES
        caller = int.from_bytes(hello[:RANK_BYTES], "big")
        theirs = hello[RANK_BYTES:-PROOF_BYTES]
        expected = self._proof(b"calls", caller, self._rank, theirs, own)
        if not hmac.compare_digest(hello[-PROOF_BYTES:], expected):
            raise _Stranger
        if caller not in self._missing or caller in self._addresses:
            raise _Stranger  # it is here already, or does not call
        connection.sendall(self._proof(b"is called", caller, self._rank, theirs, own))
        return caller

    def _calling(self, connection: socket.socket, other: int) -> Talk:
        theirs = yield NONCE_BYTES
        own = secrets.token_bytes(NONCE_BYTES)
        proof = self._proof(b"calls", self._rank, other, own, theirs)
        connection.sendall(self._rank.to_bytes(RANK_BYTES, "big") + own + proof)
        answer = yield PROOF_BYTES
        if not hmac.compare_digest(
            answer, self._proof(b"is called", self._rank, other, own, theirs)
        ):
            raise _Stranger
        return other

    def _proof(self, end: bytes, caller: int, called: int, own: bytes, theirs: bytes) -> bytes:
        """Compute the proof of knowing the secret, for one end of one call between two ranks."""
        ranks = caller.to_bytes(RANK_BYTES, "big") + called.to_bytes(RANK_BYTES, "big")
        return hmac.digest(self._secret, ranks + own + theirs + end, "sha256")


def _is_connected(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True
