"""Looks whether what a stage is to be saved with are numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from pipelocal.checkpoint.repartition import HEAD

STATISTICS = ("running_mean", "running_var")
"""Last parts of the names of the buffers that are looked at; others may hold -inf, such as masks."""


def first_nonfinite(state: Mapping[str, Any], trained: Sequence[str]) -> str | None:
    """The first of a stage's tensors that is NaN or infinite somewhere; None if all are numbers.

    Looked at are trained parameters, running statistics of norms, the averages of both, and what the
    optimizer keeps of each parameter. It takes one reduction a tensor, and the device is waited for once.

    Args:
        state: ``body``, ``head``, ``averaged`` and ``optimizer``, as of
            :meth:`~pipelocal.build.Blueprint.stage_state`.
        trained: names of the parameters in the optimizer's order; the head's begin with ``head/``.
    """
    looked_at = [(name, tensor) for name, tensor in _tensors(state, trained) if tensor.numel()]
    if not looked_at:
        return None
    device = looked_at[0][1].device
    peaks = [torch.linalg.vector_norm(t.detach(), inf).double().to(device) for _, t in looked_at]
    fine = torch.isfinite(torch.stack(peaks)).tolist()
    return next((name for (name, _), ok in zip(looked_at, fine, strict=True) if not ok), None)


def _tensors(state: Mapping[str, Any], trained: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    yield from _weights(state, trained, "")
    if state.get("averaged") is not None:
        yield from _weights(state["averaged"], trained, "the average of ")
    kept = state["optimizer"]["state"]
    for index, name in enumerate(trained):
        for what, value in kept.get(index, {}).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                yield f"{what} of {name}", value


def _weights(
    state: Mapping[str, Any], trained: Sequence[str], what: str
) -> Iterator[tuple[str, Tensor]]:
    names = set(trained)
    for part, prefix in (("body", ""), ("head", HEAD)):
        for name, value in state[part].items():
            counts = prefix + name in names or name.rpartition(".")[2] in STATISTICS
            if counts and isinstance(value, Tensor) and value.is_floating_point():
                yield f"{what}{prefix}{name}", value
