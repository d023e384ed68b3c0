"""Numbers of one or two bits, packed into bytes.

A byte does not hold neighbours: of N numbers in B bytes, byte k holds the k-th, the (k + B)-th, the
(k + 2 B)-th and so on. Packing is then a few operations on long contiguous rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BITS_A_BYTE = 8
TERNARIES_A_BYTE = 4


def packed_bytes(count: int, per_byte: int) -> int:
    """How many bytes hold ``count`` numbers."""
    return -(-count // per_byte)


def pack_bits(bits: Tensor) -> Tensor:
    """Bits, eight to a byte.

    Args:
        bits: ``[N]``, bool.

    Returns:
        ``[ceil(N / 8)]``, uint8.
    """
    return _pack(bits.view(torch.uint8), BITS_A_BYTE)


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """What :func:`pack_bits` packed.

    Args:
        packed: ``[ceil(N / 8)]``, uint8.
        count: N, which the bytes alone do not tell.

    Returns:
        ``[N]``, bool.
    """
    return _unpack(packed, BITS_A_BYTE, count).view(torch.bool)


def pack_ternaries(ternaries: Tensor) -> Tensor:
    """Numbers out of -1, 0 and 1, four to a byte.

    Args:
        ternaries: ``[N]``, int8.

    Returns:
        ``[ceil(N / 4)]``, uint8.
    """
    return _pack((ternaries + 1).view(torch.uint8), TERNARIES_A_BYTE)


def unpack_ternaries(packed: Tensor, count: int) -> Tensor:
    """What :func:`pack_ternaries` packed.

    Args:
        packed: ``[ceil(N / 4)]``, uint8.
        count: N.

    Returns:
        ``[N]``, int8.
    """
    return _unpack(packed, TERNARIES_A_BYTE, count).view(torch.int8) - 1


def _pack(codes: Tensor, per_byte: int) -> Tensor:
    """``[N]`` to ``[ceil(N / per_byte)]``, both uint8; each code fits its share of a byte."""
    lanes = F.pad(codes, (0, -codes.numel() % per_byte))
    lanes = lanes.view(per_byte, packed_bytes(codes.numel(), per_byte))
    # The lanes have no bit in common, so their sum is what "or" would give.
    return (lanes << _shifts(per_byte, codes.device)).sum(0, dtype=torch.uint8)


def _unpack(packed: Tensor, per_byte: int, count: int) -> Tensor:
    """The codes, ``[N]`` of uint8, in memory of their own."""
    mask = (1 << (8 // per_byte)) - 1
    lanes = (packed >> _shifts(per_byte, packed.device)) & mask
    return lanes.flatten()[:count]


def _shifts(per_byte: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, 8 // per_byte, dtype=torch.uint8, device=device).unsqueeze(1)
