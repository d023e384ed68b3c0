"""Two hosts on one machine: network namespaces joined by a link as slow and as long as wanted.

::

    namespace A, 10.73.0.1 [tun] <---> relay: rate, then delay, each way <---> [tun] 10.73.0.2, namespace B

The relay is two threads a direction in this process, so that no kernel module is needed (``tc netem`` is
missing from many small kernels). Real TCP of the kernel runs over it. Needs root, ``ip`` (Debian:
iproute2) and ``/dev/net/tun``.
"""

from __future__ import annotations

import fcntl
import os
import queue
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ADDRESSES = ("10.73.0.1", "10.73.0.2")
MTU = 16_000
"""Bytes of a packet: large, so that the relay's work a packet takes little of the machine."""

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


@dataclass(frozen=True, kw_only=True)
class Link:
    """How good a link is, the same in both directions, which do not share it."""

    mbit_per_s: int | None
    """None for as fast as the machine."""
    delay_ms: int
    """One way."""

    def __str__(self) -> str:
        rate = "unlimited" if self.mbit_per_s is None else f"{self.mbit_per_s} Mbit/s"
        return f"{rate}, {self.delay_ms} ms"


@dataclass(frozen=True, kw_only=True)
class Host:
    """One end of the link."""

    namespace: str
    interface: str
    address: str

    def start(self, command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        """Start a program on this host, its output captured."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": self.interface, **environment},
        )


class Relay:
    """Carries packets from one tun device to another, one way.

    Args:
        source: file descriptor of the device that packets come from.
        target: of the device that they go to.
        link: how fast and how long the way is.
    """

    def __init__(self, source: int, target: int, link: Link) -> None:
        self.carried_bytes = 0
        """Bytes on the link so far, TCP's and IP's headers and acknowledgements included."""
        self._source = source
        self._target = target
        self._seconds_a_byte = 0.0 if link.mbit_per_s is None else 8 / (link.mbit_per_s * 1e6)
        self._delay_s = link.delay_ms / 1000
        self._under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        for work in (self._take, self._deliver):
            threading.Thread(target=work, daemon=True).start()

    def _take(self) -> None:
        free = 0.0  # when the last packet will have left
        with suppress(OSError):  # the device is gone: the end
            while True:
                packet = os.read(self._source, MTU + 100)
                self.carried_bytes += len(packet)
                free = max(time.monotonic(), free) + len(packet) * self._seconds_a_byte
                self._under_way.put((free + self._delay_s, packet))

    def _deliver(self) -> None:
        with suppress(OSError):
            while True:
                due, packet = self._under_way.get()
                if (early := due - time.monotonic()) > 0:
                    time.sleep(early)
                os.write(self._target, packet)


def missing() -> str | None:
    """Why two hosts cannot be had here; None if they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces want root on Linux"
    if shutil.which("ip") is None:
        return "ip not found: install iproute2"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing"
    name = f"pipelocal-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode:
        return "this system lets nobody make network namespaces"
    _run("ip", "netns", "delete", name)
    return None


@contextmanager
def two_hosts(link: Link) -> Iterator[tuple[tuple[Host, Host], tuple[Relay, Relay]]]:
    """Two hosts and both ways of the link between them; gone at the end, with what still runs there."""
    own = os.getpid()
    first, second = (
        Host(namespace=f"pipelocal-{own}-{end}", interface=f"pl{own}{end}", address=address)
        for end, address in zip("ab", ADDRESSES, strict=True)
    )
    devices: list[int] = []
    try:
        for host in (first, second):
            _run("ip", "netns", "add", host.namespace)
            devices.append(_open_tun(host.interface))
            _run("ip", "link", "set", host.interface, "mtu", str(MTU), "netns", host.namespace)
            inside = ("ip", "-n", host.namespace)
            _run(*inside, "link", "set", "lo", "up")
            _run(*inside, "addr", "add", f"{host.address}/24", "dev", host.interface)
            _run(*inside, "link", "set", host.interface, "txqueuelen", "10000", "up")
        there, back = devices
        yield (first, second), (Relay(there, back, link), Relay(back, there, link))
    finally:
        for host in (first, second):
            listed = ["ip", "netns", "pids", host.namespace]
            shown = subprocess.run(listed, capture_output=True, text=True, check=False)
            for pid in shown.stdout.split():
                subprocess.run(["kill", "-KILL", pid], capture_output=True, check=False)
            deleted = ["ip", "netns", "delete", host.namespace]
            subprocess.run(deleted, capture_output=True, check=False)
        for device in devices:
            os.close(device)


def _open_tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
