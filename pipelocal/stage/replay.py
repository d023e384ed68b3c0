"""A module run once more on a batch that it has met: from the buffers it had then, and moving none.

A buffer may decide what a module makes: a count of batches, the vectors of spectral norm. So what is
computed again must begin where the first pass began, and not where that one left off.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call

from pipelocal.errors import UserError

Buffers = dict[str, Tensor]
"""Copies, by name."""


def copies_of_buffers(module: nn.Module) -> Buffers:
    """What a module's buffers hold now."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def replay(module: nn.Module, *inputs: Tensor, before: Buffers | None = None) -> Tensor:
    """Run a module; what it does to its buffers is done to copies.

    Args:
        module: may be a part of the one that ``before`` is of, with the names it has there.
        inputs: ``[B, ...]``; a head may have two.
        before: the buffers to begin with; None for those that it has now.
    """
    now = dict(module.named_buffers())
    begin = now if before is None else {name: before[name] for name in now}
    buffers = {name: buffer.clone() for name, buffer in begin.items()}
    out: Tensor = functional_call(module, buffers, inputs)
    return out


def leaving_input(units: nn.Module, x: Tensor) -> Tensor:
    """Run units that must leave their input as it is.

    Raises:
        UserError: they have changed it.
    """
    version = x._version
    out: Tensor = units(x)
    if x._version != version:
        names = ", ".join(f"'{name}'" for name, _ in units.named_children())
        raise UserError(
            f"units {names}: the input was changed in place, which was not so when they were tried: clone "
            f"it first, or use an operation that is not in place"
        )
    return out
