"""The frame that announces a batch: its header, and the small tensors that the contract names.

A frame is one int64 tensor of fixed length, so that the receiver can post a receive before it knows
what comes::

    | header 7 | ids, room for max_rows | target, room for max_rows |
"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from pipelocal.transport.contract import Contract, Message
from pipelocal.transport.header import HEADER_LENGTH, Header


class FrameLayout:
    """The position of each announced tensor in the frame.

    Args:
        contract: the contract of the edge.
    """

    def __init__(self, contract: Contract) -> None:
        self.length = HEADER_LENGTH
        """Number of int64 values in a frame."""
        self._places: dict[str, tuple[int, Message]] = {}
        for message in contract.messages:
            if message.announced:
                assert message.torch_dtype == torch.int64, "a frame is int64"
                assert message.packed is None, "a frame is not packed"
                self._places[message.name] = (self.length, message)
                self.length += contract.max_rows * prod(message.shape)

    def write(self, header: Header, tensors: Mapping[str, Tensor]) -> Tensor:
        """Make a frame ``[length]`` on the CPU, from ``tensors`` int64 ``[rows, ...]`` on the CPU."""
        frame = torch.zeros(self.length, dtype=torch.int64)
        frame[:HEADER_LENGTH] = header.encode()
        for name, tensor in tensors.items():
            first, _ = self._places[name]
            frame[first : first + tensor.numel()] = tensor.reshape(-1)
        return frame

    def read_header(self, frame: Tensor) -> Header:
        """Return the header of a frame; raise ``ValueError`` if the bytes are not a header."""
        return Header.decode(frame[:HEADER_LENGTH])

    def read(self, frame: Tensor, name: str, rows: int) -> Tensor:
        """Return an announced tensor ``[rows, ...]``, a view of the frame's memory."""
        first, message = self._places[name]
        return frame[first : first + rows * prod(message.shape)].view(rows, *message.shape)
