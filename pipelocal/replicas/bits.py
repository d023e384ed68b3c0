"""Packs numbers of one or two bits into bytes.

A byte does not hold adjacent numbers: of N numbers in B bytes, byte k holds the k-th, the (k + B)-th, the
(k + 2 B)-th and so on, so that packing takes a few operations on long contiguous rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BITS_A_BYTE = 8
TERNARIES_A_BYTE = 4


def packed_bytes(count: int, per_byte: int) -> int:
    """Return how many bytes hold ``count`` numbers."""
    return -(-count // per_byte)


def pack_bits(bits: Tensor) -> Tensor:
    """Pack bits, eight to a byte.

    Args:
        bits: ``[N]``, bool.

    Returns:
        ``[ceil(N / 8)]``, uint8.
    """
    return _pack(bits.view(torch.uint8), BITS_A_BYTE)


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """Unpack the result of :func:`pack_bits`.

    Args:
        packed: ``[ceil(N / 8)]``, uint8.
        count: N, which the bytes alone do not determine.

    Returns:
        ``[N]``, bool.
    """
    return _unpack(packed, BITS_A_BYTE, count).view(torch.bool)


def pack_ternaries(ternaries: Tensor) -> Tensor:
    """Pack numbers out of -1, 0 and 1, four to a byte.

    Args:
        ternaries: ``[N]``, int8.

    Returns:
        ``[ceil(N / 4)]``, uint8.
    """
    return _pack((ternaries + 1).view(torch.uint8), TERNARIES_A_BYTE)


def unpack_ternaries(packed: Tensor, count: int) -> Tensor:
    """Unpack the result of :func:`pack_ternaries`.

    Args:
        packed: ``[ceil(N / 4)]``, uint8.
        count: N.

    Returns:
        ``[N]``, int8.
    """
    return _unpack(packed, TERNARIES_A_BYTE, count).view(torch.int8) - 1


def _pack(codes: Tensor, per_byte: int) -> Tensor:
    """Pack codes ``[N]`` into ``[ceil(N / per_byte)]``, both uint8; each fits its part of a byte."""
    lanes = F.pad(codes, (0, -codes.numel() % per_byte))
    lanes = lanes.view(per_byte, packed_bytes(codes.numel(), per_byte))
    # The lanes share no bits, so their sum equals a bitwise or.
    return (lanes << _shifts(per_byte, codes.device)).sum(0, dtype=torch.uint8)


def _unpack(packed: Tensor, per_byte: int, count: int) -> Tensor:
    """Unpack the codes, uint8 ``[N]``, into new memory."""
    mask = (1 << (8 // per_byte)) - 1
    lanes = (packed >> _shifts(per_byte, packed.device)) & mask
    return lanes.flatten()[:count]


def _shifts(per_byte: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, 8 // per_byte, dtype=torch.uint8, device=device).unsqueeze(1)
