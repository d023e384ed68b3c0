"""Carries packets between two TUN devices and holds each for the latency; started by ``network.py``.

Makes the devices, prints their names and runs until its standard input is closed. The devices can be
moved to other network namespaces: they go on, and vanish with this process.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress

# From linux/if_tun.h.
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 0x01, 0x02, 0x04

LONGEST = 10 + 65535
"""Bytes of the kernel's note on how to cut a packet, and of the longest packet."""
AT_ONCE = 64
"""Packets that are read from a device before others are looked after."""


def main() -> None:
    """Run until standard input is closed."""
    one_way_s, offload = float(sys.argv[1]), sys.argv[2] == "1"
    with suppress(PermissionError):
        # A link must not wait until the processes that it joins leave a core to it.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    (first, first_name), (second, second_name) = open_tun(offload), open_tun(offload)
    print(first_name, second_name, flush=True)
    carry(first, second, one_way_s)


def open_tun(offload: bool) -> tuple[int, str]:
    """A new TUN device: its file descriptor and name."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    asked = struct.pack("16sH22x", b"pl%d", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
    given = fcntl.ioctl(device, TUNSETIFF, asked)
    if offload:
        fcntl.ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    return device, given[:16].rstrip(b"\0").decode()


def carry(first: int, second: int, one_way_s: float) -> None:
    """Pass packets on both ways. Latency is the same for all, so first in is first out."""
    other = {first: second, second: first}
    stdin = sys.stdin.fileno()
    held: deque[tuple[float, int, bytes]] = deque()
    while True:
        patience = max(0.0, held[0][0] - time.monotonic()) if held else None
        readable, _, _ = select.select([stdin, first, second], [], [], patience)
        if stdin in readable:
            return
        for device in readable:
            with suppress(BlockingIOError):
                for _ in range(AT_ONCE):
                    packet = os.read(device, LONGEST)
                    held.append((time.monotonic() + one_way_s, other[device], packet))
        now = time.monotonic()
        while held and held[0][0] <= now:
            _, device, packet = held.popleft()
            with suppress(OSError):  # as on any link, a packet for a device that is down is lost
                os.write(device, packet)


if __name__ == "__main__":
    main()
