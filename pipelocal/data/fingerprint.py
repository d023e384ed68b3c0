"""What a run remembers of its data: counts, shapes, dtypes, and a cheap fingerprint of the content."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch import Tensor

from pipelocal.data.dataset import ArrayDataset

MOST_BYTES = 2**20
"""Of each tensor that are looked at, in rows that lie evenly spread."""


def describe_data(dataset: ArrayDataset) -> dict[str, Any]:
    """Name, counts, shapes and dtypes of samples and labels, classes, and a fingerprint of the content.

    The fingerprint is of rows spread evenly over each tensor, all of them where they are not more than a
    mebibyte: other data of the same shape are found, a single pixel that differs may not be.
    """
    info = dataset.info
    return {
        "name": info.name,
        "sample_shape": list(info.sample_shape),
        "sample_dtype": _name(info.sample_dtype),
        "target_shape": list(info.target_shape),
        "target_dtype": _name(dataset.train_y.dtype),
        "classes": info.classes,
        "train_samples": len(dataset.train_x),
        "test_samples": len(dataset.test_x),
        "fingerprint": fingerprint(dataset),
    }


def fingerprint(dataset: ArrayDataset) -> str:
    """Of what a data set holds: its tensors, and the constants by which they are normalised."""
    total = hashlib.sha256()
    for field in dataclasses.fields(dataset):
        value = getattr(dataset, field.name)
        if isinstance(value, Tensor):
            rows = _spread_rows(value)
            total.update(f"{field.name} {list(value.shape)} {value.dtype}".encode())
            total.update(rows.contiguous().view(torch.uint8).numpy().tobytes())
        elif field.name != "info":
            total.update(f"{field.name} {value}".encode())
    return total.hexdigest()


def _spread_rows(tensor: Tensor) -> Tensor:
    row_bytes = max(1, tensor[:1].numel() * tensor.element_size())
    count = max(1, MOST_BYTES // row_bytes)
    if len(tensor) <= count:
        return tensor
    return tensor[torch.linspace(0, len(tensor) - 1, count).long()]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
