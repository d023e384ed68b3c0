"""The window of an edge: how many batches may be in flight, and the memory in which they arrive.

::

    sending end                                      receiving end
    Window: begun, and not yet taken   =========>    Ring: arriving, or in use
    at most --window batches                         as many slots, and two at least

A stage that is ahead waits for room in the window; a batch waits for a free slot of the ring. So a stage
that is slow holds back those before it, and no end's memory grows with the stream. Neither class has a
lock: each end asks and changes its own under the lock of its :class:`~pipelocal.transport.endpoint.Endpoint`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch

from pipelocal.errors import UserError
from pipelocal.transport.channels import Token
from pipelocal.transport.contract import Contract

RING_SLOTS = 2
"""Least slots of a ring: one batch in use and one arriving."""


def ring_slots(window: int) -> int:
    """Batches that the receiving end has memory for, of an edge with this window."""
    return max(RING_SLOTS, window)


def check_room(contract: Contract, window: int, free_bytes: int) -> None:
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


class Window:
    """The sending end's count of batches in flight: begun, and not yet taken by the other end.

    Args:
        size: most of them.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._in_flight = 0

    def has_room(self) -> bool:
        """Whether another batch may begin."""
        return self._in_flight < self._size

    def is_empty(self) -> bool:
        """Whether the other end has taken all that began."""
        return self._in_flight == 0

    def begin_batch(self) -> None:
        """Count a batch that begins."""
        self._in_flight += 1

    def end_batch(self) -> None:
        """Count a batch that the other end has taken."""
        self._in_flight -= 1


class Slot:
    """Memory for one batch.

    Args:
        contract: of the edge.
        device: where the tensors arrive.
        free: the point of the device's work from which on it may be filled.
    """

    def __init__(self, contract: Contract, device: torch.device, free: Token) -> None:
        self.free = free
        self.buffers = {
            m.name: torch.empty((contract.max_rows, *m.shape), dtype=m.torch_dtype, device=device)
            for m in contract.messages
        }


class Ring:
    """The receiving end's slots that are free, of which the one that was free first is filled next."""

    def __init__(self, slots: Iterable[Slot]) -> None:
        self._free = deque(slots)

    def has_free(self) -> bool:
        """Whether a batch may arrive."""
        return bool(self._free)

    def take(self) -> Slot:
        """The slot for the next batch; there must be one."""
        return self._free.popleft()

    def give_back(self, slot: Slot) -> None:
        """Take back a slot whose batch was released."""
        self._free.append(slot)
