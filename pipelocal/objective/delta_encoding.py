"""Encodings of the output gradient for sending: delta in full, in fewer bits, or summarised.

A summary is made at the sending stage and read at the receiving one. Where it cannot be turned back
into a gradient (``sketch``), the receiver reduces its own input gradient the same way, and the two
reductions are compared.

| name | bytes per sample of F numbers | |
| --- | --- | --- |
| ``full`` | 4 F | |
| ``bf16`` | 2 F | 8 bits of mantissa |
| ``int8`` | F + 4 | one scale per sample |
| ``pooled`` | 4 F / (places) | mean over space or tokens: exact for a pooled linear head |
| ``sketch`` | 4 r | each coordinate is added with a random sign to one of r sums |
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from pipelocal.registry import Registry
from pipelocal.transport.packing import PACKINGS, Packing, Shape


class Summary(Packing, Protocol):
    """How delta is sent over one edge: a packing whose message need not decode to delta itself."""

    def reduce(self, eta: Tensor) -> Tensor:
        """Reduce the receiver's own gradient ``[B, ...]`` the same way; linear, row by row."""


SummaryBuilder = Callable[[Shape, int, int], Summary]
"""Called with the shape of one feature, the size of a sketch, and a seed shared by both ends of the edge."""

SUMMARIES: Registry[SummaryBuilder] = Registry("form of delta", takes="feature_shape, size, seed")


class Itself:
    """delta itself, in one of the packings that outputs also use.

    Args:
        packing: how its numbers are packed.
    """

    def __init__(self, packing: Packing) -> None:
        self.shape = packing.shape
        self.dtype = packing.dtype
        self.encode = packing.encode
        self.decode = packing.decode

    def reduce(self, eta: Tensor) -> Tensor:
        """See :class:`Summary`."""
        return eta


class Pooled:
    """Mean over all positions of an image or all tokens, which the receiver spreads evenly again.

    Args:
        shape: shape of one feature: ``[C, ...]``, or tokens ``[T, C]``.
    """

    dtype = torch.float32

    def __init__(self, shape: Shape) -> None:
        self._feature = shape
        self._tokens = len(shape) == 2
        self.shape = (shape[1] if self._tokens else shape[0],)

    def encode(self, delta: Tensor) -> Tensor:
        """See :class:`Summary`."""
        if len(self._feature) == 1:
            return delta
        return delta.mean(1) if self._tokens else delta.flatten(2).mean(2)

    def decode(self, message: Tensor) -> Tensor:
        """See :class:`Summary`."""
        places = message[:, None] if self._tokens else message[(..., *[None] * self._spatial)]
        return places.expand(-1, *self._feature)

    def reduce(self, eta: Tensor) -> Tensor:
        """See :class:`Summary`."""
        return eta

    @property
    def _spatial(self) -> int:
        return len(self._feature) - 1


class Sketch:
    """A random projection: every coordinate is added, with a random sign, to one of a few sums.

    It preserves inner products in expectation, like any random projection (count sketch, Charikar et
    al. 2002), at the cost of one addition per coordinate.

    Args:
        shape: shape of one feature.
        size: numbers sent per sample.
        seed: must be the same at both ends.
    """

    dtype = torch.float32

    def __init__(self, shape: Shape, size: int, seed: int) -> None:
        numbers = prod(shape)
        self.shape = (min(size, numbers),)
        generator = torch.Generator().manual_seed(seed)
        # With one sum per coordinate there is nothing to project.
        self._sum_of = (
            torch.randint(size, (numbers,), generator=generator)
            if size < numbers
            else torch.arange(numbers)
        )
        self._sign = torch.randint(2, (numbers,), generator=generator) * 2.0 - 1

    def encode(self, delta: Tensor) -> Tensor:
        """See :class:`Summary`."""
        return self.reduce(delta)

    def decode(self, message: Tensor) -> Tensor:
        """See :class:`Summary`."""
        return message

    def reduce(self, eta: Tensor) -> Tensor:
        """See :class:`Summary`."""
        flat = eta.flatten(1)
        self._sum_of = self._sum_of.to(flat.device)
        self._sign = self._sign.to(flat.device)
        sums = flat.new_zeros(len(flat), self.shape[0])
        return sums.index_add(1, self._sum_of, flat * self._sign.to(flat.dtype))


def whole_delta(shape: Shape) -> Summary:
    """Return the encoding that sends delta unchanged."""
    return Itself(PACKINGS.get("float32")(shape))


SUMMARIES.register("full")(lambda shape, _size, _seed: whole_delta(shape))
SUMMARIES.register("bf16")(lambda shape, _size, _seed: Itself(PACKINGS.get("bf16")(shape)))
SUMMARIES.register("int8")(lambda shape, _size, _seed: Itself(PACKINGS.get("int8")(shape)))
SUMMARIES.register("pooled")(lambda shape, _size, _seed: Pooled(shape))
SUMMARIES.register("sketch")(Sketch)
