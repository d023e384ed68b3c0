"""Comparing batches."""

from collections.abc import Iterable

import torch

from pipelocal.data import Batch


def same(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    """Whether both yield the same batches, bit for bit."""
    pairs = zip(first, second, strict=True)
    return all(
        torch.equal(a.x, b.x) and torch.equal(a.target, b.target) and torch.equal(a.ids, b.ids)
        for a, b in pairs
    )
