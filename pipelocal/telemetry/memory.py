"""How many bytes a stage holds, counted from its tensors: exact, and the same on every device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pipelocal.stage import Stage


class SavedBytes:
    """Counts the distinct storages that autograd keeps for the backward pass.

    A tensor that is saved twice, or whose memory another saved tensor shares, counts once.
    """

    def __init__(self) -> None:
        # By identity, which tensors on the meta device have too, unlike an address; kept here, so
        # that none is used again.
        self._storages: dict[int, torch.UntypedStorage] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is saved within this block."""

        def save(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            self._storages[id(storage)] = storage
            return tensor

        with saved_tensors_hooks(save, lambda tensor: tensor):
            yield

    def bytes_beyond(self, tensors: Iterable[Tensor]) -> int:
        """Bytes counted without those of ``tensors``, such as parameters; forgets what it counted."""
        own = [tensor.untyped_storage() for tensor in tensors]
        for storage in own:
            self._storages.pop(id(storage), None)
        total = sum(storage.nbytes() for storage in self._storages.values())
        self._storages.clear()
        return total


def resident_bytes(stage: Stage) -> int:
    """Bytes of parameters, buffers, optimizer state and, once trained, gradients at their peak."""
    state = [
        value
        for values in stage.optimizer.state.values()
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    gradients = [p for p in model_tensors(stage) if p.requires_grad]
    return tensor_bytes([*model_tensors(stage), *state, *gradients])


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Sum of the tensors' sizes in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def device_peak_bytes(device: torch.device) -> int | None:
    """Peak of what this process allocated on a CUDA device; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def model_tensors(stage: Stage) -> list[Tensor]:
    """Parameters and buffers of body and head."""
    return [
        tensor
        for module in (stage.body, stage.head)
        for tensor in (*module.parameters(), *module.buffers())
    ]
