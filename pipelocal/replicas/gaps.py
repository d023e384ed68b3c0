"""Signs of a few coordinates out of many, packed as the gaps between them, one byte each.

The lower seven bits of a byte tell how many coordinates were passed over since the one before; the
highest bit is set for a minus. A gap of :data:`ESCAPE` or more begins with escapes, each of which passes
over as many coordinates and stands for none. What is passed over behind the last one is not written, so
that escapes at the end change nothing: a row can be made longer with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

ESCAPE = 127
SIGN_BIT = 7


def expected_bytes(count: int, share: float) -> float:
    """At most so many bytes, expected, however the coordinates lie that are kept.

    Args:
        count: of all coordinates.
        share: of them that is kept, expected.
    """
    kept = share * count
    return kept + (count - kept) / ESCAPE


def pack_gaps(ternaries: Tensor) -> Tensor:
    """Numbers out of -1, 0 and 1, of which few are other than 0.

    Args:
        ternaries: ``[N]``, int8.

    Returns:
        ``[K]``, uint8; K depends on them, and is 0 if all are 0.
    """
    kept = ternaries.nonzero().squeeze(1)
    before = torch.cat((kept.new_tensor([-1]), kept[:-1]))[: kept.numel()]
    gaps = kept - before - 1
    ends = (gaps // ESCAPE + 1).cumsum(0)  # each one's own byte is behind its escapes
    length = int(ends[-1]) if kept.numel() else 0
    packed = torch.full((length,), ESCAPE, dtype=torch.uint8, device=ternaries.device)
    minus = (ternaries[kept] < 0).to(torch.uint8)
    packed[ends - 1] = (gaps % ESCAPE).to(torch.uint8) | (minus << SIGN_BIT)
    return packed


def unpack_gaps(packed: Tensor, count: int) -> Tensor:
    """What :func:`pack_gaps` packed.

    Args:
        packed: ``[K]``, uint8, with any number of escapes behind it.
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
