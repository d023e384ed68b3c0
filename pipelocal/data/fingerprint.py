"""Describes a run's data: counts, shapes, dtypes, and a cheap fingerprint of the content."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch import Tensor

from pipelocal.data.dataset import ArrayDataset

MOST_BYTES = 2**20
"""Most bytes of each tensor to fingerprint, in evenly spaced rows."""


def describe_data(dataset: ArrayDataset) -> dict[str, Any]:
    """Name, counts, shapes and dtypes of samples and labels, classes, and a fingerprint of the content.

    The fingerprint covers evenly spaced rows of each tensor, or all rows up to a mebibyte: it detects other
    data of the same shape, but may miss a single changed pixel.
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
    """Fingerprint a data set: its tensors and its normalisation constants."""
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
