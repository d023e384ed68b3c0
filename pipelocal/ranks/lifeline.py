"""Idle connections between neighbouring ranks, which reveal when a process is lost.

The kernel closes the connections of a process that ends, however it ends. Tensor transports do not always
report that: a gloo send that was half written when its receiver was killed waits for ever, and so does an
NCCL kernel.

::

    rank r                                  rank r+1
    listens, publishes its address   <---   connects; both prove to be of this run
    farewell byte, then closes       --->   an end without the byte before it: rank r is lost

Only numbers, proofs and one byte are sent. A host that vanishes without closing connections is detected by
TCP keep-alive, or by the timeout of the edges.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Collection
from typing import Any

from pipelocal.ranks.address import listen
from pipelocal.ranks.membership import meet_neighbours

FAREWELL = b"."
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds of silence, seconds between probes, number of probes: a dead host after 25 s."""


class Lifeline:
    """This rank's connections to the ranks that it talks to.

    Args:
        rank: this rank.
        neighbours: the ranks to connect to; each lists this one too.
        secret: shared by the ranks of this run, which use it to prove that they belong to it.
        put: publishes a fact to all ranks.
        wait_for: waits for a fact.
        check: raises when another rank has failed.
        on_lost: called once, on a thread of this object, with the number of a lost rank.
        timeout_s: seconds to wait for a neighbour.

    Raises:
        NotMet: a neighbour cannot be reached, or does not connect.
    """

    def __init__(
        self,
        rank: int,
        neighbours: Collection[int],
        *,
        secret: bytes,
        put: Callable[[str, Any], None],
        wait_for: Callable[[str], Any],
        check: Callable[[], None],
        on_lost: Callable[[int], None],
        timeout_s: float,
    ) -> None:
        self._on_lost = on_lost
        self._selector = selectors.DefaultSelector()
        self._neighbours: dict[int, socket.socket] = {}
        with listen() as server:
            put(f"lifeline/{rank}", list(server.getsockname()[:2]))
            addresses = {
                other: wait_for(f"lifeline/{other}") for other in neighbours if other < rank
            }
            there = meet_neighbours(
                server, rank, neighbours, addresses, secret, check=check, timeout_s=timeout_s
            )
        for other, connection in there.items():
            self._add(other, connection)
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave without alarming the neighbours."""
        for connection in self._neighbours.values():
            try:
                connection.sendall(FAREWELL)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the neighbour was faster

    def _add(self, rank: int, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._neighbours[rank] = connection
        self._selector.register(connection, selectors.EVENT_READ, rank)

    def _watch(self) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                try:
                    word = connection.recv(1)
                except OSError:
                    word = b""
                self._selector.unregister(connection)
                if word != FAREWELL:
                    self._on_lost(key.data)
