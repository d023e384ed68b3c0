"""Packs the numbers of a tensor for a wire: unchanged, or in fewer bits.

The sending end packs, the receiving end unpacks to float32. Every row is packed separately, so that it
does not matter which rows share a batch.

| form | bytes per row of F numbers | error of a number x |
| --- | --- | --- |
| ``float32`` | 4 F | none |
| ``bf16`` | 2 F | at most \\|x\\| / 256; keeps -0.0; infinite from 3.396e38 on |
| ``int8`` | F + 4 | at most a 254th of the row's largest entry; -0.0 becomes 0.0 |

NaN and infinity are preserved; with ``int8`` they make all other numbers of their row non-finite.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from pipelocal.registry import Registry

Shape = tuple[int, ...]

SCALE_BYTES = 4


class Packing(Protocol):
    """How a tensor is encoded for sending; rows are samples."""

    @property
    def shape(self) -> Shape:
        """Shape of one row on the wire."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype on the wire."""

    def encode(self, tensor: Tensor) -> Tensor:
        """Encode a float32 tensor ``[B, ...]`` as ``[B, *shape]`` of :attr:`dtype`."""

    def decode(self, message: Tensor) -> Tensor:
        """Decode to a float32 tensor ``[B, ...]``, which may share the message's memory."""


PackingBuilder = Callable[[Shape], Packing]
"""Called with the shape of one row; makes a packing."""

PACKINGS: Registry[PackingBuilder] = Registry("wire form", takes="row_shape")


def row_bytes(packing: Packing) -> int:
    """Return the bytes of one row on the wire."""
    return prod(packing.shape) * packing.dtype.itemsize


class Cast:
    """Sends the numbers cast to another dtype.

    Args:
        shape: shape of one row.
        dtype: dtype on the wire.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.shape = shape
        self.dtype = dtype

    def encode(self, tensor: Tensor) -> Tensor:
        """See :class:`Packing`."""
        return tensor.to(self.dtype)

    def decode(self, message: Tensor) -> Tensor:
        """See :class:`Packing`."""
        return message.float() if self.dtype != torch.float32 else message


class Int8:
    """Sends the numbers in steps of 1/127 of each row's largest magnitude.

    Args:
        shape: shape of one row.
    """

    dtype = torch.int8

    def __init__(self, shape: Shape) -> None:
        self._row = shape
        self.shape = (prod(shape) + SCALE_BYTES,)

    def encode(self, tensor: Tensor) -> Tensor:
        """See :class:`Packing`; the scale is the last four bytes of a row."""
        flat = tensor.flatten(1)
        tiny = torch.finfo(torch.float32).tiny  # for rows of zeros or tiny numbers
        scale = (flat.abs().amax(1, keepdim=True) / 127).clamp_min(tiny)
        steps = (flat / scale).round_().to(torch.int8)
        return torch.cat((steps, scale.contiguous().view(torch.int8)), dim=1)

    def decode(self, message: Tensor) -> Tensor:
        """See :class:`Packing`."""
        # Always copy: four bytes can be viewed as a float only at an aligned offset.
        last = message[:, -SCALE_BYTES:].clone(memory_format=torch.contiguous_format)
        scale = last.view(torch.float32)
        return (message[:, :-SCALE_BYTES] * scale).view(-1, *self._row)


class ChannelsLast:
    """Sends channels-last images in their memory order, without a copy.

    Args:
        form: packing of the numbers, a name in :data:`PACKINGS`.
        shape: shape of one image, ``[C, H, W]``.
    """

    def __init__(self, form: str, shape: Shape) -> None:
        channels, *places = shape
        self._row = (*places, channels)
        self._numbers = PACKINGS.get(form)(self._row)
        self.shape = self._numbers.shape
        self.dtype = self._numbers.dtype

    def encode(self, tensor: Tensor) -> Tensor:
        """See :class:`Packing`."""
        # Via one dimension, so that dimensions of size 1 get the strides of a new tensor.
        rows = tensor.permute(0, 2, 3, 1).flatten().view(-1, *self._row)
        return self._numbers.encode(rows)

    def decode(self, message: Tensor) -> Tensor:
        """See :class:`Packing`; channels last in memory."""
        return self._numbers.decode(message).permute(0, 3, 1, 2)


def packing_of(form: str, shape: Shape, *, channels_last: bool = False) -> Packing:
    """Return the packing for rows of a shape.

    Args:
        form: a name in :data:`PACKINGS`.
        shape: shape of one row.
        channels_last: whether images ``[C, H, W]`` are channels last; ignored for other shapes.

    Raises:
        UserError: there is no such form.
    """
    if channels_last and len(shape) == 3:
        return ChannelsLast(form, shape)
    return PACKINGS.get(form)(shape)


PACKINGS.register("float32")(lambda shape: Cast(shape, torch.float32))
PACKINGS.register("bf16")(lambda shape: Cast(shape, torch.bfloat16))
PACKINGS.register("int8")(Int8)
