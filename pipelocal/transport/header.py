"""The fixed header that announces each event of the stream."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class Kind(IntEnum):
    """What comes next on an edge."""

    TRAIN = 1
    """A batch to train on, without reconciliation."""
    EVALUATE = 2
    """A batch to evaluate on."""
    EVALUATED = 3
    """The evaluation is over: every stage reports and forgets its sums. No tensors follow."""
    END = 4
    """The stream is over. No tensors follow, and no further header."""
    RECONCILE = 5
    """A batch to train on and to reconcile: delta comes too."""

    SNAPSHOT = 6
    """A marker: every stage saves what it is after the batches before it. No tensors follow."""
    EPOCH = 7
    """The training batches of an epoch are over: its sums are read. No tensors follow."""
    UPDATE = 8
    """The batches since the last update make one, though they are fewer than usual, and some replicas may
    have met none of them. No tensors follow."""

    @property
    def dealt(self) -> bool:
        """Whether tensors follow, so that one replica of a stage meets it; the others go to all."""
        return self in (Kind.TRAIN, Kind.RECONCILE, Kind.EVALUATE)

    @property
    def trains(self) -> bool:
        """Whether the stages are trained on this batch."""
        return self in (Kind.TRAIN, Kind.RECONCILE)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the next batch is; 56 bytes on the wire, whatever the model."""

    kind: Kind
    number: int
    """Count of the event on this stream, from 0; a gap means that a batch was lost."""
    rows: int
    """Valid rows of every tensor that follows."""
    epoch: int
    step: int
    """Training batches of the run before this event, whoever met them."""
    update_at: int = 0
    """Training batches of the run after which comes the update to which a training batch belongs; 0 if the
    stages go by their own count."""

    def encode(self) -> Tensor:
        """As int64 ``[7]`` on the CPU."""
        place = [self.number, self.rows, self.epoch, self.step, self.update_at]
        return torch.tensor([MAGIC, self.kind, *place])

    @classmethod
    def decode(cls, data: Tensor) -> "Header":
        """The inverse of :meth:`encode`; ``ValueError`` if the bytes are no header."""
        magic, kind, number, rows, epoch, step, update_at = data.tolist()
        if magic != MAGIC:
            raise ValueError(f"expected a batch header, got {data.tolist()}")
        return cls(
            kind=Kind(kind), number=number, rows=rows, epoch=epoch, step=step, update_at=update_at
        )


MAGIC = 0x50_4C_4F_43_00_02
"""``PLOC`` and the version of this format."""

HEADER_LENGTH = 7
