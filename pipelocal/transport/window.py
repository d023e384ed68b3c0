"""The window of an edge: how many batches may be in flight, and the memory in which they arrive.

::

    sending end                                      receiving end
    as many frames as the window:      =========>    a ring of as many slots, and two at least:
    begun, and not yet taken                         arriving, or in use

A stage that is ahead waits for a frame; a batch waits for a free slot of the ring. So a stage that is slow
holds back those before it, and no end's memory grows with the stream.
"""

from __future__ import annotations

from pipelocal.errors import UserError
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
