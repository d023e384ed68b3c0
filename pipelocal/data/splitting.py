"""Splits test data off training data by a hash: a sample stays where it is when others come or go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils.data import DataLoader, Subset

from pipelocal.errors import UserError
from pipelocal.seeding import derive_seed

_RANGE = 2**63


def is_test(key: str | int, share: float) -> bool:
    """Whether a sample of this name or index is for testing, which is the same for every seed."""
    return derive_seed(0, "test split", key) < share * _RANGE


def split(keys: Iterable[str | int], share: float) -> tuple[list[int], list[int]]:
    """Return the positions of the training and of the test samples.

    Raises:
        UserError: one of them would be empty.
    """
    parts: tuple[list[int], list[int]] = ([], [])
    for position, key in enumerate(keys):
        parts[is_test(key, share)].append(position)
    if not all(parts):
        raise UserError(
            f"a test part of {share:g} of {len(parts[0]) + len(parts[1])} samples leaves {len(parts[0])} for "
            f"training and {len(parts[1])} for testing: give another share, or more samples"
        )
    return parts


def split_by_index(dataset: Any, share: float) -> tuple[Any, Any]:
    """Return the training and the test part of a map-style data set.

    Raises:
        UserError: it is of another kind, or the share is out of range.
    """
    if not 0 < share < 1:
        raise UserError(f"test={share:g}: give a share between 0 and 1, or data")
    sized = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, DataLoader) or not sized:
        raise UserError(
            f"test={share:g}: a share can be split off a data set with __getitem__ and __len__: give one as "
            f"train, or test data of its own"
        )
    train, test = split(range(len(dataset)), share)
    return Subset(dataset, train), Subset(dataset, test)
