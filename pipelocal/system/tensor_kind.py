"""What is known of a tensor before there is one: its name, the shape of a row, its dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch


@dataclass(frozen=True, kw_only=True)
class TensorKind:
    """One of the tensors of a batch, all of which have as many rows."""

    name: str
    shape: tuple[int, ...]
    """Shape of one row, without the batch dimension."""
    dtype: torch.dtype = torch.float32

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row."""
        return prod(self.shape) * self.dtype.itemsize

    def to_json(self) -> dict[str, Any]:
        """Return the kind as plain values."""
        return {"name": self.name, "shape": list(self.shape), "dtype": dtype_name(self.dtype)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the inverse of :meth:`to_json`."""
        return cls(
            name=values["name"],
            shape=tuple(values["shape"]),
            dtype=getattr(torch, values["dtype"]),
        )


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without ``torch.``, such as ``float32``."""
    return str(dtype).removeprefix("torch.")
