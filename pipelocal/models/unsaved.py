"""Buffers that a module's state dict leaves out (``persistent=False``), such as constants and counters.

What a run does to them is kept in its snapshots, although no exported model holds it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Mark = tuple[tuple[int, ...], str]
"""Shape of a buffer, and a digest of its values."""


def unsaved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a module's state dict leaves out, by name."""
    buffers = dict(module.named_buffers())
    saved = module.state_dict().keys() if buffers else ()
    return {name: value.detach() for name, value in buffers.items() if name not in saved}


def mark(buffer: Tensor) -> Mark:
    """Return what shows later whether a buffer has changed."""
    dense = buffer.detach().to_dense() if buffer.layout != torch.strided else buffer.detach()
    values = dense.cpu().contiguous().reshape(-1).view(torch.uint8)
    return tuple(buffer.shape), hashlib.blake2b(values.numpy().data, digest_size=16).hexdigest()


@torch.no_grad()
def set_unsaved(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give a module the values of such buffers; names that it does not have are left out."""
    for name, value in values.items():
        path, _, last = name.rpartition(".")
        try:
            owner = module.get_submodule(path)
            now = getattr(owner, last)
        except AttributeError:
            continue
        if isinstance(now, Tensor) and (now.shape, now.dtype) == (value.shape, value.dtype):
            now.copy_(value)
        else:
            near = now if isinstance(now, Tensor) else next(module.parameters(), value)
            owner.register_buffer(last, value.to(near.device), persistent=False)
