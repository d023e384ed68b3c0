"""The window of an edge: how many batches may be in flight, and the memory in which they arrive.

::

    sending end                                      receiving end
    as many frames as the window:      =========>    a ring of as many slots, and two at least:
    begun, and not yet taken                         arriving, or in use

A stage that is ahead waits for a frame; a batch waits for a free slot of the ring. So a stage that is slow
holds back those before it, and no end's memory grows with the stream.

A slot is under way for a round: the word that it is free travels to the sender, a batch travels back and is
used. On a long link a round takes longer than the stages need for as many batches as there are slots, and
both ends wait. With the window ``auto`` the receiver then adds slots (:class:`Growth`). The sending end needs
no further frames: what it sends into a free slot has left once the network's own buffers have it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

import psutil
import torch

from pipelocal.errors import UserError
from pipelocal.transport.contract import Contract

Window = int | Literal["auto"]

RING_SLOTS = 2
"""Least slots of a ring: one batch in use and one arriving."""
MOST_SLOTS = 64
"""Most slots of a ring that grows."""
MOST_GROWN_BYTES = 256 * 2**20
"""Most memory of a ring that grows: twice what 10 Gbit/s carry during a round trip of 100 ms."""
SHARE_OF_FREE = 0.25
"""Most of the free memory that added slots may take."""

WARM_UP = 4
"""Batches at the start of a stream whose times say nothing about those to come."""
ROUND = 8
"""Batches whose waits are added up."""
WORTH_A_SLOT = 0.05
"""Share of the time that both ends must wait."""
TRIALS = 2
"""Rounds within which added slots must have made batches faster."""


def frames(window: Window) -> int:
    """Batches that the sending end of an edge may have begun."""
    return RING_SLOTS if window == "auto" else window


def ring_slots(window: Window) -> int:
    """Batches that the receiving end of an edge has memory for; with ``auto``, at first."""
    return RING_SLOTS if window == "auto" else max(RING_SLOTS, window)


def slots_needed(round_s: float, batch_s: float) -> int:
    """Return how many slots keep the stages busy, where they are given a round and a batch's time in seconds.

    One more than fill the round, since no two batches take the same time.
    """
    return max(RING_SLOTS, math.ceil(round_s / batch_s) + 1)


def most_slots(contract: Contract, window: Window) -> int:
    """Slots up to which the ring of an edge may grow."""
    if window != "auto":
        return ring_slots(window)
    fitting = MOST_GROWN_BYTES // max(1, contract.batch_bytes)
    return max(RING_SLOTS, min(MOST_SLOTS, fitting))


class Growth:
    """Decides when a ring needs more slots, and how many.

    A slow stage lets one end wait: the sender for room, or the receiver for a batch. Where both do, they wait
    for the link, and the shorter of the two waits is what more slots can save. A batch takes a round's time
    over the number of slots, so a round is as long as the slots times what a batch takes.

    If a batch does not get faster with more slots, it is bandwidth that lacks, and the ring stays as it is.

    Args:
        slots: of the ring at first.
        most: slots that it may have.
        room: tells for how many more there is memory.
        clock: seconds.
    """

    def __init__(
        self,
        slots: int,
        most: int,
        room: Callable[[], int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.slots = slots
        self._most = most
        self._room = room
        self._clock = clock
        self._hoped_s: float | None = None
        """What a batch should take at most with the slots that were added last."""
        self._trials = 0
        self._restart(WARM_UP)

    def _restart(self, ignored: int) -> None:
        self._count = -ignored
        self._since = self._clock()
        self._sender_s = self._receiver_s = 0.0

    def interrupt(self) -> None:
        """Leave out the batches since the last decision: the time until the next one is not the link's."""
        self._restart(max(0, -self._count))

    def add(self, *, sender_s: float, receiver_s: float) -> int:
        """Count a batch; return how many slots the ring needs beside those that it has.

        Args:
            sender_s: how long the sender waited for room since the batch before, in seconds.
            receiver_s: how long the receiver waited for it.
        """
        if self.slots == self._most:
            return 0
        self._count += 1
        if self._count <= 0:
            if self._count == 0:
                self._restart(0)
            return 0
        self._sender_s += sender_s
        self._receiver_s += receiver_s
        if self._count < ROUND:
            return 0
        batch_s = (self._clock() - self._since) / ROUND
        saved_s = min(self._sender_s, self._receiver_s) / ROUND
        more = self._more(batch_s, saved_s)
        self.slots += more
        # What is under way was sent into the ring of before.
        self._restart(self.slots if more else 0)
        return more

    def _more(self, batch_s: float, saved_s: float) -> int:
        if self._hoped_s is not None and batch_s > self._hoped_s:
            self._trials += 1
            if self._trials == TRIALS:
                self._most = self.slots
            return 0
        self._trials = 0
        if saved_s < WORTH_A_SLOT * batch_s:
            return 0
        self._hoped_s = batch_s - saved_s / 2
        wanted = slots_needed(self.slots * batch_s, max(batch_s - saved_s, batch_s / MOST_SLOTS))
        return max(0, min(wanted, self._most, self.slots + self._room()) - self.slots)


def free_bytes(device: torch.device) -> int:
    """Return the memory that can be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def check_room(contract: Contract, window: Window, free_bytes: int) -> None:
    """Refuse a ring that memory does not hold, before the system ends the process for it.

    Args:
        contract: of the edge.
        window: as given.
        free_bytes: memory that can be had where the tensors arrive.

    Raises:
        UserError: says how much it would take, and which window would do.
    """
    ring = ring_slots(window) * contract.batch_bytes
    if ring <= free_bytes:
        return
    fitting = free_bytes // contract.batch_bytes
    mend = f"give at most --window {fitting}, or" if fitting >= RING_SLOTS else "give"
    raise UserError(
        f"--window {window}: stage {contract.target} would keep {ring / 1e9:.1f} GB for what comes in, and "
        f"{free_bytes / 1e9:.1f} GB are free: {mend} a smaller --batch-size"
    )
