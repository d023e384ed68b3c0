"""Hosts on one machine: network namespaces with links between them, as slow and lossy as asked for.

::

    namespace a                        relay.py                         namespace b
    processes - "wire" 10.77.0.1  -->  holds each packet  -->  "wire" 10.77.0.2 - processes
                tc tbf: bandwidth      for the latency         tc tbf: bandwidth

Every host has one TUN device. ``tc`` limits what leaves it; the relay carries packets to the device of the
host that they are addressed to, holds each for the latency and drops some if asked to. ``netem`` would do
that in the kernel, but not every kernel has it (nor veth), and every kernel that containers run on has
TUN devices.

Needs root, and ``ip`` and ``tc`` of iproute2.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DEVICE = "wire"
"""Name of the link's device in both namespaces."""
NETWORK = "10.77.0.0/24"
BURST = 72 * 1024
"""Bytes that may leave at once: a little over the 64 KiB that the kernel hands over in one piece."""
QUEUE = 4 * 2**20
"""Bytes that wait for a limited link before packets are dropped; over a round trip's worth."""
END_PATIENCE_S = 2.0
"""How long what still runs at the end may take to leave."""

_numbers = itertools.count()


class NetworkError(Exception):
    """The link cannot be made; the text is one line."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a link is like, the same in both directions."""

    bits_per_s: float | None = None
    """Bandwidth; None for as fast as this machine moves packets."""
    one_way_s: float = 0.0
    """Latency of one direction; a round trip takes twice that."""
    loss: float = 0.0
    """Share of packets that are lost."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """One end of the link."""

    namespace: str
    address: str
    device: str = DEVICE
    """Network interface by which the others are reached."""

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line that runs another one on this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def cut_off(self) -> None:
        """Cut the host's link: packets in both directions are lost until :meth:`reconnect`."""
        _call("ip", "-n", self.namespace, "link", "set", DEVICE, "down")

    def reconnect(self) -> None:
        """Mend the link."""
        _call("ip", "-n", self.namespace, "link", "set", DEVICE, "up")
        _call("ip", "-n", self.namespace, "route", "replace", NETWORK, "dev", DEVICE)

    def sent_bytes(self) -> int:
        """Bytes that left towards the other host so far, IP and TCP headers included."""
        counter = f"/sys/class/net/{DEVICE}/statistics/tx_bytes"
        return int(_call(*self.command(["cat", counter])))

    def processes(self) -> list[int]:
        """Ids of what runs here."""
        return [int(line) for line in _call("ip", "netns", "pids", self.namespace).split()]


class Here(Host):
    """This machine itself, in place of several hosts: what it runs reaches the others without a link."""

    def __init__(self) -> None:
        super().__init__(namespace="", address="127.0.0.1", device="lo")

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line itself."""
        return list(arguments)


def missing() -> str | None:
    """What this machine lacks for such a link, in a few words; None if nothing."""
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"the program {program} (package iproute2)"
    if not Path("/dev/net/tun").exists():
        return "the device /dev/net/tun"
    try:
        with two_hosts(Shape(bits_per_s=1e9)):
            return None
    except NetworkError as error:
        return f"root's rights over networks ({error})"


@contextmanager
def two_hosts(shape: Shape, *, offload: bool = True) -> Iterator[tuple[Host, Host]]:
    """Two hosts and the link between them; see :func:`some_hosts`."""
    with some_hosts(2, shape, offload=offload) as (first, second):
        yield first, second


@contextmanager
def some_hosts(count: int, shape: Shape, *, offload: bool = True) -> Iterator[list[Host]]:
    """So many hosts that all reach each other; what runs on them at the end is ended.

    Args:
        count: of hosts.
        shape: of every host's link.
        offload: whether TCP may hand over many packets in one piece, as a network card lets it.
            Without, the counters see every packet's header, for more of the CPU's time.

    Raises:
        NetworkError: the links cannot be made.
    """
    mark = f"pipelocal-{os.getpid()}-{next(_numbers)}"
    hosts = [
        Host(namespace=f"{mark}-{number}", address=address_of(number)) for number in range(count)
    ]
    try:
        for host in hosts:
            _call("ip", "netns", "add", host.namespace)
        with _relay(count, shape, offload) as devices:
            for host, device in zip(hosts, devices, strict=True):
                _attach(host, device, shape)
            try:
                yield hosts
            finally:
                _end_processes(hosts)
    finally:
        for host in hosts:
            with suppress(NetworkError):  # if it was not made, that error is under way
                _call("ip", "netns", "del", host.namespace)


def address_of(number: int) -> str:
    """The address of a host, from 0."""
    return f"10.77.0.{number + 1}"


def _attach(host: Host, device: str, shape: Shape) -> None:
    """Make a relay's device the link of a host."""
    name = host.namespace
    _call("ip", "link", "set", device, "netns", name, "name", DEVICE)
    _call("ip", "-n", name, "address", "add", f"{host.address}/24", "dev", DEVICE)
    for each in ("lo", DEVICE):
        _call("ip", "-n", name, "link", "set", each, "up")
    if shape.bits_per_s is not None:
        limit = f"tbf rate {shape.bits_per_s:.0f}bit burst {BURST} limit {QUEUE}"
        _call("tc", "-n", name, "qdisc", "add", "dev", DEVICE, "root", *limit.split())


@contextmanager
def _relay(count: int, shape: Shape, offload: bool) -> Iterator[list[str]]:
    """A running relay; the names of its devices."""
    arguments = [str(count), str(shape.one_way_s), str(int(offload)), str(shape.loss)]
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("relay.py")), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C ends the processes on the hosts first
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            devices = process.stdout.readline().split()
            if len(devices) != count:
                lines = process.stderr.read().splitlines()
                raise NetworkError(lines[-1] if lines else "the relay did not start")
            yield devices
        finally:
            process.kill()


def _end_processes(hosts: Sequence[Host]) -> None:
    """End what runs on the hosts: politely, and after some seconds by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + END_PATIENCE_S
        running = [process for host in hosts for process in host.processes()]
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process, number)
        while running and time.monotonic() < deadline:
            time.sleep(0.02)
            running = [process for host in hosts for process in host.processes()]


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {' '.join(done.stderr.split())}")
    return done.stdout
