"""Runs a module again on a batch that it has seen, from its buffers of then, without updating any.

A module's output may depend on a buffer: a count of batches, the vectors of spectral norm. So a replay must
start from the buffers with which the first pass started, not those with which it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from pipelocal.errors import UserError
from pipelocal.models.payload import Payload, tensors_of

Buffers = dict[str, Tensor]
"""Copies of a module's buffers, by name."""


def copies_of_buffers(module: nn.Module) -> Buffers:
    """Copy a module's buffers."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def replay(module: nn.Module, *inputs: Payload, before: Buffers | None = None) -> Any:
    """Run a module on copies of its buffers, so that its own do not change.

    Args:
        module: the module; ``before`` may also hold the buffers of a larger one with the same names.
        inputs: ``[B, ...]`` each; a head may take two.
        before: the buffers to start from; None for the module's current ones.
    """
    now = dict(module.named_buffers())
    # What the first pass made, such as a mask, has no value from before it.
    begin = now if before is None else {name: before.get(name, now[name]) for name in now}
    buffers = {name: buffer.clone() for name, buffer in begin.items()}
    return call_with(buffers, module, *inputs)


def call_with(tensors: Mapping[str, Tensor], module: nn.Module, *inputs: Payload) -> Any:
    """Call a module with other tensors in place of parameters and buffers, which are back afterwards.

    Args:
        tensors: by the name that ``named_parameters`` and ``named_buffers`` give.
        module: the module; what is tied in it stays tied.
        inputs: of the call.
    """
    named = chain(module.named_parameters(), module.named_buffers())
    others = {id(held): tensors[name] for name, held in named if name in tensors}
    placed = {}
    # functional_call ties by itself, but would leave its tensors behind in a module that has two names.
    for path, part in module.named_modules():
        for name, held in chain(_own(part.named_parameters), _own(part.named_buffers)):
            if id(held) in others:
                placed[f"{path}.{name}".removeprefix(".")] = others[id(held)]
    return functional_call(module, placed, inputs, tie_weights=False)


def _own(named: Callable[..., Iterable[tuple[str, Tensor]]]) -> Iterable[tuple[str, Tensor]]:
    return named(recurse=False, remove_duplicate=False)


def leaving_input(units: nn.Module, x: Payload) -> Payload:
    """Run units, and check that they leave their input unchanged.

    Raises:
        UserError: the units changed their input.
    """
    inputs = tensors_of(x)
    versions = [tensor._version for tensor in inputs]
    out: Payload = units(x)
    if [tensor._version for tensor in inputs] != versions:
        names = ", ".join(f"'{name}'" for name, _ in units.named_children())
        raise UserError(
            f"units {names}: the input was changed in place, which was not so when they were tried: clone "
            f"it first, or use an operation that is not in place"
        )
    return out
