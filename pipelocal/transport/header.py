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

    @property
    def trains(self) -> bool:
        """Whether the stages are trained on this batch."""
        return self in (Kind.TRAIN, Kind.RECONCILE)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the next batch is; 40 bytes on the wire, whatever the model."""

    kind: Kind
    number: int
    """Count of the event on this stream, from 0; a gap means that a batch was lost."""
    rows: int
    """Valid rows of every tensor that follows."""
    epoch: int

    def encode(self) -> Tensor:
        """As int64 ``[5]`` on the CPU."""
        return torch.tensor([MAGIC, self.kind, self.number, self.rows, self.epoch])

    @classmethod
    def decode(cls, data: Tensor) -> "Header":
        """The inverse of :meth:`encode`; ``ValueError`` if the bytes are no header."""
        magic, kind, number, rows, epoch = data.tolist()
        if magic != MAGIC:
            raise ValueError(f"expected a batch header, got {data.tolist()}")
        return cls(kind=Kind(kind), number=number, rows=rows, epoch=epoch)


MAGIC = 0x50_4C_4F_43_00_01
"""``PLOC`` and the version of this format."""

HEADER_LENGTH = 5
