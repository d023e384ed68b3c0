"""Carries packets between TUN devices and holds each for the latency; started by ``network.py``.

The k-th device (from 1) is that of the address which ends in k.

Makes the devices, prints their names and runs until its standard input is closed. The devices can be
moved to other network namespaces: they go on, and vanish with this process.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

# From linux/if_tun.h.
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 0x01, 0x02, 0x04

VNET_HEADER = 10
LONGEST = VNET_HEADER + 65535
"""Bytes of the kernel's note on how to cut a packet, and of the longest packet."""
AT_ONCE = 64
"""Packets that are read from a device before others are looked after."""


def main() -> None:
    """Run until standard input is closed."""
    count, one_way_s, offload, loss = sys.argv[1:]
    with suppress(PermissionError):
        # A link must not wait until the processes that it joins leave a core to it.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    devices, names = zip(*(open_tun(offload == "1") for _ in range(int(count))), strict=True)
    print(*names, flush=True)
    carry(devices, float(one_way_s), float(loss))


def open_tun(offload: bool) -> tuple[int, str]:
    """A new TUN device: its file descriptor and name."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    asked = struct.pack("16sH22x", b"pl%d", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
    given = fcntl.ioctl(device, TUNSETIFF, asked)
    if offload:
        fcntl.ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    return device, given[:16].rstrip(b"\0").decode()


def carry(devices: Sequence[int], one_way_s: float, loss: float) -> None:
    """Pass packets on. Latency is the same for all, so first in is first out.

    Args:
        devices: file descriptors of the devices.
        one_way_s: latency, in seconds.
        loss: share of packets that are dropped; the same ones in every run.
    """
    chance = random.Random(0)
    stdin = sys.stdin.fileno()
    held: deque[tuple[float, int, bytes]] = deque()
    while True:
        patience = max(0.0, held[0][0] - time.monotonic()) if held else None
        readable, _, _ = select.select([stdin, *devices], [], [], patience)
        if stdin in readable:
            return
        for device in readable:
            with suppress(BlockingIOError):
                for _ in range(AT_ONCE):
                    packet = os.read(device, LONGEST)
                    other = target_of(packet, devices)
                    if other is not None and chance.random() >= loss:
                        held.append((time.monotonic() + one_way_s, other, packet))
        now = time.monotonic()
        while held and held[0][0] <= now:
            _, device, packet = held.popleft()
            with suppress(OSError):  # as on any link, a packet for a device that is down is lost
                os.write(device, packet)


def target_of(packet: bytes, devices: Sequence[int]) -> int | None:
    """The device of the address that an IPv4 packet goes to, if it is of one of them."""
    header = packet[VNET_HEADER:]
    if len(header) < 20 or header[0] >> 4 != 4:
        return None
    number = header[19]  # the last byte of the destination's address
    return devices[number - 1] if 0 < number <= len(devices) else None


if __name__ == "__main__":
    main()
