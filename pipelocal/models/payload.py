"""What passes between two units: one tensor, or a main tensor and others beside it.

::

    x                       main alone
    (x, skip, mask)         main, and what lies beside it: skips, masks, positions

``nn.Sequential`` hands either on as one argument. Heads, delta and eta are of the main tensor.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Payload = Tensor | tuple[Tensor, ...]
"""Tensors ``[B, ...]`` of any dtype; a tuple has at least two."""


def pack(main: Tensor, beside: tuple[Tensor, ...]) -> Payload:
    """Return a payload of a main tensor and those beside it."""
    return (main, *beside) if beside else main


def unpack(payload: Payload) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the main tensor of a payload, and those beside it."""
    if isinstance(payload, Tensor):
        return payload, ()
    main, *beside = payload
    return main, tuple(beside)


def tensors_of(payload: Payload) -> tuple[Tensor, ...]:
    """Return all tensors of a payload, main first."""
    return (payload,) if isinstance(payload, Tensor) else tuple(payload)


def each(change: Callable[[Tensor], Tensor], payload: Payload) -> Payload:
    """Return a payload of what a function makes of each tensor."""
    if isinstance(payload, Tensor):
        return change(payload)
    return tuple(change(tensor) for tensor in payload)
