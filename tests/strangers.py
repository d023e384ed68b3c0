"""Strangers: what may call the ports of a run that stand open, from a scanner to one who guesses."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable

import psutil

FLOOD = 50
"""Calls at once: each takes gloo a tenth of a second to turn away, at every port."""
MOST_HELD = 200
CALLS_PER_PORT = 150
STORE_MAGIC = b"\0" + struct.pack("<I", 0x3C85F7CE)
"""How a client of torch's TCPStore begins."""


class Strangers:
    """A thread that calls every listening port of the processes below this one, while it is entered.

    Args:
        seed: of what is thrown.
        guess_gloo: also begin as a peer of gloo would, which may take a real peer's place.
        seconds: after which it stops by itself.
    """

    def __init__(self, seed: int, *, guess_gloo: bool = False, seconds: float = 60.0) -> None:
        self.calls: Counter[int] = Counter()
        """Calls so far, by port."""
        self._random = random.Random(seed)
        self._held: list[socket.socket] = []
        self._flooded: set[int] = set()
        self._leave = threading.Event()
        self._seconds = seconds
        self._thread = threading.Thread(target=self._throw, daemon=True)
        self._ways: list[Callable[[int], None]] = [
            self._noise,
            self._early_close,
            self._abort,
            self._silence,
            self._wrong_rank,
            self._echo,
            self._half_a_word_to_the_store,
        ]
        if guess_gloo:
            self._ways.append(self._guessed_peer)

    def __enter__(self) -> Strangers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        self._thread.join()
        for connection in self._held:
            connection.close()

    def _throw(self) -> None:
        deadline = time.monotonic() + self._seconds
        while not self._leave.wait(0.02) and time.monotonic() < deadline:
            for port in listening_ports():
                if self.calls[port] < CALLS_PER_PORT:
                    self._call(port)

    def _call(self, port: int) -> None:
        self.calls[port] += 1
        way = self._random.choice(self._ways)
        try:
            way(port)
            if self.calls[port] > 5 and port not in self._flooded:
                self._flooded.add(port)
                self._flood(port)
        except OSError:
            pass  # it was turned away

    def _hold(self, connection: socket.socket) -> None:
        self._held.append(connection)
        if len(self._held) > MOST_HELD:
            self._held.pop(0).close()

    def _noise(self, port: int) -> None:
        with _connected(port) as connection:
            connection.sendall(self._random.randbytes(self._random.randint(1, 5000)))

    def _early_close(self, port: int) -> None:
        with _connected(port) as connection:
            connection.sendall(self._random.randbytes(self._random.randint(0, 8)))

    def _abort(self, port: int) -> None:
        with _connected(port) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _silence(self, port: int) -> None:
        self._hold(_connected(port))

    def _wrong_rank(self, port: int) -> None:
        rank = self._random.randint(0, 3).to_bytes(4, "big")
        connection = _connected(port)
        self._hold(connection)
        connection.sendall(rank + self._random.randbytes(64))

    def _echo(self, port: int) -> None:
        with _connected(port) as connection:
            connection.settimeout(0.05)
            heard = connection.recv(100)
            connection.sendall(bytes(4) + heard + heard)

    def _half_a_word_to_the_store(self, port: int) -> None:
        query = bytes([self._random.randint(0, 20)])
        length = struct.pack("<Q", 1 << self._random.randint(0, 62))
        connection = _connected(port)
        self._hold(connection)
        connection.sendall(STORE_MAGIC + query + length + self._random.randbytes(30))

    def _guessed_peer(self, port: int) -> None:
        connection = _connected(port)
        self._hold(connection)
        peer = struct.pack("<q", self._random.randint(0, 2))
        connection.sendall(peer + self._random.choice([b"", bytes(500), b"\xff" * 500]))

    def _flood(self, port: int) -> None:
        crowd = [socket.socket() for _ in range(FLOOD)]
        for connection in crowd:
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", port))
        time.sleep(0.05)
        for connection in crowd:
            connection.close()


def listening_ports() -> list[int]:
    """Of all processes below this one that can be reached at 127.0.0.1."""
    ports = set()
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    ports.add(connection.laddr.port)
        except psutil.Error:
            continue  # it has just ended
    return sorted(ports)


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=1)
