"""The frame that announces a batch: its header, and the tensors that ride along with it.

A frame is one message, since a transfer costs more time than the bytes of what is small. Both ends know from
the contract what rides, and so from a header where it lies::

    | header, wait | ids | target | x | ...      each padded to a multiple of 64 bytes

Behind the header's 56 bytes stands how long the sender has waited for room.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor

from pipelocal.transport.contract import Contract, Message
from pipelocal.transport.header import FORMAT, Header, Kind

WAIT = struct.Struct("=d")
"""Seconds that the sender waited for room since the batch before."""

ALIGNED = 64
"""Bytes to which the header and every tensor are padded: as memory of their own would be aligned, since the
alignment may decide how a library adds numbers up, and so the last bits of a sum."""

Load = tuple[dict[str, Tensor], Tensor]
"""The places ``[rows, ...]`` of what rides, by name, and the frame as it travels, uint8 ``[bytes]``."""


class FrameLayout:
    """What rides in a frame.

    Args:
        contract: of the edge.
        room: most bytes of what rides beside the announced tensors.
    """

    def __init__(self, contract: Contract, room: int) -> None:
        self.max_rows = contract.max_rows
        riding = []
        for message in contract.messages:
            if not message.announced:
                size = contract.max_rows * message.bytes_per_row
                room = -1 if message.late or size > room else room - size
            if message.announced or room >= 0:
                riding.append(message)
        self.riding: dict[Kind, list[Message]] = {
            kind: [m for m in contract.of_kind(kind) if m in riding] for kind in Kind
        }
        """What rides with a header of each kind, in the contract's order."""
        self.following: dict[Kind, list[Message]] = {
            kind: [m for m in contract.of_kind(kind) if m not in riding] for kind in Kind
        }
        """What follows it in messages of its own."""
        self.size = max(
            ALIGNED + sum(_aligned(self.max_rows * m.bytes_per_row) for m in messages)
            for messages in self.riding.values()
        )
        """Bytes of the longest frame."""


class Frame:
    """Memory for one frame.

    Args:
        layout: what rides.
        data: the memory, uint8 ``[layout.size]`` on the CPU.
    """

    def __init__(self, layout: FrameLayout, data: Tensor) -> None:
        self.data = data
        self._layout = layout
        self._memory: Any = data.numpy()
        self._full: dict[Kind, Load] = {}

    def write(self, header: Header, *, waited_s: float = 0.0) -> None:
        """Write the header, and the seconds that the sender waited for room."""
        header.pack_into(self._memory)
        WAIT.pack_into(self._memory, FORMAT.size, waited_s)

    def read(self) -> Header:
        """Return the header; raise ``ValueError`` if the bytes are not one."""
        return Header.unpack_from(self._memory)

    def read_wait(self) -> float:
        """Return the seconds that the sender waited for room."""
        (waited_s,) = WAIT.unpack_from(self._memory, FORMAT.size)
        return float(waited_s)

    def load(self, kind: Kind, rows: int) -> Load:
        """Return where everything lies in a frame of this kind."""
        if rows < self._layout.max_rows:
            return self._load(kind, rows)
        if kind not in self._full:
            self._full[kind] = self._load(kind, rows)
        return self._full[kind]

    def _load(self, kind: Kind, rows: int) -> Load:
        tensors: dict[str, Tensor] = {}
        place = ALIGNED
        for message in self._layout.riding[kind]:
            size, dtype = rows * message.bytes_per_row, message.torch_dtype
            # A storage of its own, so that what a backward pass keeps of it counts as what it is.
            flat = torch.frombuffer(
                self._memory, dtype=dtype, count=size // dtype.itemsize, offset=place
            )
            tensors[message.name] = flat.view(rows, *message.shape)
            place += _aligned(size)
        return tensors, self.data[:place]


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
