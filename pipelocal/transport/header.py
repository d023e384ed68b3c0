"""The fixed header that announces each event of the stream."""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Kind(IntEnum):
    """The kinds of events on an edge."""

    TRAIN = 1
    """A batch to train on, without reconciliation."""
    EVALUATE = 2
    """A batch to evaluate on."""
    EVALUATED = 3
    """The end of an evaluation: every stage reports and resets its sums. No tensors follow."""
    END = 4
    """The end of the stream. No tensors and no further headers follow."""
    RECONCILE = 5
    """A batch to train on and to reconcile: delta follows too."""

    SNAPSHOT = 6
    """A marker: every stage saves its state after the preceding batches. No tensors follow."""
    EPOCH = 7
    """The end of an epoch's training batches: its sums are read. No tensors follow."""
    UPDATE = 8
    """An early update with the batches so far, which are fewer than usual; some replicas may have had none.
    No tensors follow; on an edge back, weights do, which go to all replicas."""

    @property
    def dealt(self) -> bool:
        """Whether tensors follow, so that it goes to one replica of a stage; other events go to all."""
        return self in (Kind.TRAIN, Kind.RECONCILE, Kind.EVALUATE)

    @property
    def trains(self) -> bool:
        """Whether the stages are trained on this batch."""
        return self in (Kind.TRAIN, Kind.RECONCILE)


@dataclass(frozen=True, kw_only=True)
class Header:
    """Describes the next event; 56 bytes on the wire, for any model."""

    kind: Kind
    number: int
    """Number of the event in this stream, from 0; a gap means that a batch was lost."""
    rows: int
    """Valid rows of every tensor that follows."""
    epoch: int
    step: int
    """Training batches of the run before this event, on all replicas."""
    update_at: int = 0
    """Number of training batches of the run after which this batch's update is due; 0 if stages use their
    own count."""

    def pack_into(self, memory: Any) -> None:
        """Write the header at the start of ``memory``, which is a writable buffer of bytes."""
        place = (self.number, self.rows, self.epoch, self.step, self.update_at)
        FORMAT.pack_into(memory, 0, MAGIC, self.kind, *place)

    @classmethod
    def unpack_from(cls, memory: Any) -> "Header":
        """Read what :meth:`pack_into` wrote; raise ``ValueError`` if the bytes are not a header."""
        magic, kind, number, rows, epoch, step, update_at = found = FORMAT.unpack_from(memory)
        if magic != MAGIC:
            raise ValueError(f"expected a batch header, got {list(found)}")
        return cls(
            kind=Kind(kind), number=number, rows=rows, epoch=epoch, step=step, update_at=update_at
        )


MAGIC = 0x50_4C_4F_43_00_04
"""``PLOC`` and the version of the frame's format."""

FORMAT = struct.Struct("=7q")
"""Of a header on the wire: seven int64."""
