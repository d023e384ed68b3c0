"""Contracts of edges that carry one tensor and labels."""

from typing import Any

import torch

from pipelocal.system.tensor_kind import TensorKind
from pipelocal.transport.contract import Contract, edge_contract


def plain_contract(
    *,
    source: int = 1,
    feature: tuple[int, ...],
    label: tuple[int, ...] = (),
    classes: int = 2,
    max_rows: int = 8,
    **options: Any,
) -> Contract:
    """Make the contract of an edge for a classifier of samples, or of their tokens."""
    return edge_contract(
        source=source,
        x=[TensorKind(name="x", shape=feature)],
        target=TensorKind(name="target", shape=label, dtype=torch.int64),
        output_shape=(*label, classes),
        max_rows=max_rows,
        **options,
    )
