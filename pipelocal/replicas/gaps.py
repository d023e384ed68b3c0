"""Packs the signs of a few coordinates out of many as the gaps between them, one byte each.

The lower seven bits of a byte give the number of coordinates skipped since the previous one; the highest bit
is set for a minus. A gap of :data:`ESCAPE` or more starts with escapes, each of which skips that many
coordinates and encodes none. Coordinates skipped after the last one are not written, so that trailing
escapes change nothing and can pad a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

ESCAPE = 127
SIGN_BIT = 7


def expected_bytes(count: int, share: float) -> float:
    """Return an upper bound of the expected bytes, wherever the kept coordinates are.

    Args:
        count: number of all coordinates.
        share: expected share of coordinates that are kept.
    """
    kept = share * count
    return kept + (count - kept) / ESCAPE


def pack_gaps(ternaries: Tensor) -> Tensor:
    """Pack numbers out of -1, 0 and 1, few of which are nonzero.

    Args:
        ternaries: ``[N]``, int8.

    Returns:
        ``[K]``, uint8; K depends on the numbers, and is 0 if all are 0.
    """
    kept = ternaries.nonzero().squeeze(1)
    before = torch.cat((kept.new_tensor([-1]), kept[:-1]))[: kept.numel()]
    gaps = kept - before - 1
    ends = (gaps // ESCAPE + 1).cumsum(0)  # each one's own byte follows its escapes
    length = int(ends[-1]) if kept.numel() else 0
    packed = torch.full((length,), ESCAPE, dtype=torch.uint8, device=ternaries.device)
    minus = (ternaries[kept] < 0).to(torch.uint8)
    packed[ends - 1] = (gaps % ESCAPE).to(torch.uint8) | (minus << SIGN_BIT)
    return packed


def unpack_gaps(packed: Tensor, count: int) -> Tensor:
    """Unpack the result of :func:`pack_gaps`.

    Args:
        packed: ``[K]``, uint8, padded with any number of escapes.
        count: N.

    Returns:
        ``[N]``, int8.
    """
    gaps = packed & ESCAPE
    kept = gaps != ESCAPE
    places = ((gaps + kept).cumsum(0) - 1)[kept]
    ternaries = torch.zeros(count, dtype=torch.int8, device=packed.device)
    minus = (packed[kept] >> SIGN_BIT).view(torch.int8)
    ternaries[places] = 1 - 2 * minus
    return ternaries
