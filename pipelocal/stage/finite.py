"""Checks that the state to be saved of a stage is finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

HEAD = "head/"
"""Prefix of the names of a head's parameters; no name in a model begins with it."""
OBJECTIVE = "objective/"
"""Prefix of the names of an objective's parameters."""

STATISTICS = ("running_mean", "running_var")
"""Last name components of the buffers that are checked; others, such as masks, may hold -inf."""


@torch.no_grad()
def first_nonfinite(state: Mapping[str, Any], trained: Sequence[str]) -> str | None:
    """Name the first of a stage's tensors with a NaN or an infinity; None if all are finite.

    Checks trained parameters, running statistics of norms, the averages of both, and the optimizer's state
    for each parameter. This takes one reduction per tensor and a single wait for the device.

    Args:
        state: ``body``, ``head``, ``averaged`` and ``optimizer``, as made by
            :func:`~pipelocal.stage.state.stage_state`.
        trained: names of the parameters in the optimizer's order; the head's begin with ``head/``.
    """
    looked_at = list(_tensors(state, trained))
    if not looked_at:
        return None
    device = looked_at[0][1].device
    # A sum, the cheapest reduction, reveals NaN and infinity, but also flags merely large numbers.
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
