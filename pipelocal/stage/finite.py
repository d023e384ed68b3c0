"""Looks whether what a stage is to be saved with are numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

HEAD = "head/"
"""Before the names of a head's parameters; no name of a model begins so."""
OBJECTIVE = "objective/"
"""Likewise of an objective's."""

STATISTICS = ("running_mean", "running_var")
"""Last parts of the names of the buffers that are looked at; others may hold -inf, such as masks."""


@torch.no_grad()
def first_nonfinite(state: Mapping[str, Any], trained: Sequence[str]) -> str | None:
    """The first of a stage's tensors that is NaN or infinite somewhere; None if all are numbers.

    Looked at are trained parameters, running statistics of norms, the averages of both, and what the
    optimizer keeps of each parameter. It takes one reduction a tensor, and the device is waited for once.

    Args:
        state: ``body``, ``head``, ``averaged`` and ``optimizer``, as of
            :func:`~pipelocal.stage.state.stage_state`.
        trained: names of the parameters in the optimizer's order; the head's begin with ``head/``.
    """
    looked_at = list(_tensors(state, trained))
    if not looked_at:
        return None
    device = looked_at[0][1].device
    # NaN and infinity show in a sum, the cheapest of reductions; so do numbers that are merely large.
    sums = torch.stack([tensor.sum().double().to(device) for _, tensor in looked_at])
    for (name, tensor), fine in zip(looked_at, torch.isfinite(sums).tolist(), strict=True):
        if not fine and not bool(torch.isfinite(tensor).all()):
            return name
    return None


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
    for part, prefix in (("body", ""), ("head", HEAD), ("objective", OBJECTIVE)):
        for name, value in (state.get(part) or {}).items():
            counts = prefix + name in names or name.rpartition(".")[2] in STATISTICS
            if counts and isinstance(value, Tensor) and value.is_floating_point():
                yield f"{what}{prefix}{name}", value
