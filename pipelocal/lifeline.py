"""Connections between ranks that talk to each other that carry nothing, so that a lost process is noticed.

The kernel closes the connections of a process that ends, however it ends. What carries the tensors
does not always pass that on: a gloo send that was half written when its receiver was killed waits
for ever, and so does an NCCL kernel.

::

    rank r                                  rank r+1
    listens, publishes its address   <---   connects, says which rank it is
    farewell byte, then closes       --->   an end without the byte before it: rank r is lost

Only numbers and one byte travel. A host that vanishes without closing anything is found by TCP
keep-alive, or by the patience of the edges.
"""

from __future__ import annotations

import ipaddress
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import psutil

from pipelocal.errors import UserError

CONNECT_TIMEOUT_S = 20.0
FAREWELL = b"."
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds of silence, seconds between probes, number of probes: a dead host after 25 s."""


class Lifeline:
    """This rank's connections to the ranks that it talks to.

    Args:
        rank: this rank.
        neighbours: those ranks; each names this one too.
        put: publishes a fact to all ranks.
        wait_for: waits for a fact.
        on_lost: called once, from a thread of this object, with the number of a rank that is gone.
        timeout_s: how long to wait for a neighbour to come.

    Raises:
        UserError: a neighbour cannot be reached, or does not come.
    """

    def __init__(
        self,
        rank: int,
        neighbours: Collection[int],
        *,
        put: Callable[[str, Any], None],
        wait_for: Callable[[str], Any],
        on_lost: Callable[[int], None],
        timeout_s: float,
    ) -> None:
        self._on_lost = on_lost
        self._selector = selectors.DefaultSelector()
        self._neighbours: dict[int, socket.socket] = {}
        with _listen() as server:
            server.settimeout(timeout_s)
            put(f"lifeline/{rank}", [own_address(), server.getsockname()[1]])
            # A call is taken by the system before it is accepted, so nobody waits in a circle.
            for other in sorted(other for other in neighbours if other < rank):
                host, port = wait_for(f"lifeline/{other}")
                self._add(other, _call(host, port, rank, other))
            missing = {other for other in neighbours if other > rank}
            while missing:
                other, connection = _accept(server, missing)
                missing.remove(other)
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
        connection.settimeout(None)
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


def own_address() -> str:
    """The address at which other ranks reach this host: the one that it reaches the master from.

    Raises:
        UserError: the master's name, or without a master this host's own, has no address.
    """
    name = os.environ.get("MASTER_ADDR") or socket.gethostname()
    try:
        family, kind, _, _, master = socket.getaddrinfo(name, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            # Connecting a datagram socket sends nothing; it only chooses the route.
            probe.connect(master)
            address: str = probe.getsockname()[0]
    except OSError as error:
        raise UserError(
            f"the host name '{name}' leads to no address ({error}): set MASTER_ADDR to the address "
            f"of the first node"
        ) from error
    several_hosts = os.environ.get("LOCAL_WORLD_SIZE", "1") != os.environ.get("WORLD_SIZE", "1")
    if several_hosts and ipaddress.ip_address(address).is_loopback:
        # The master's own name often leads to a loopback address on the master.
        return _outward_address() or address
    return address


def _outward_address() -> str | None:
    """An IPv4 address of this host that is no loopback: of gloo's interface if one is named."""
    named = os.environ.get("GLOO_SOCKET_IFNAME")
    for interface, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family == socket.AF_INET and (
                interface == named or (not named and not entry.address.startswith("127."))
            ):
                return str(entry.address)
    return None


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _call(host: str, port: int, rank: int, other: int) -> socket.socket:
    try:
        connection = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
        connection.sendall(rank.to_bytes(8, "big"))
    except OSError as error:
        raise UserError(
            f"rank {rank} cannot reach rank {other} at {host} port {port} ({error}): let ranks "
            f"connect to each other on any port, and set MASTER_ADDR to an address that all can reach"
        ) from error
    return connection


def _accept(server: socket.socket, expected: Collection[int]) -> tuple[int, socket.socket]:
    """The next connection of an expected rank, and which; others that knock are turned away."""
    patience = server.gettimeout() or 0.0
    deadline = time.monotonic() + patience
    while (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            break
        connection.settimeout(CONNECT_TIMEOUT_S)
        try:
            caller = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
            if caller in expected:
                return caller, connection
        except OSError:
            pass  # a stranger who says nothing, or leaves
        connection.close()
    raise UserError(f"rank {min(expected)} did not come to the start within {patience:g} s")
