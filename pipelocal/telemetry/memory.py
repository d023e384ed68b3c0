"""Counts the bytes of tensors one by one: exact, and the same on every device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class SavedBytes:
    """Counts the bytes that autograd keeps for backward passes, until it releases them.

    Memory that is saved twice, or shared by several saved tensors, counts once.

    Args:
        own: tensors to exclude, such as parameters.
    """

    def __init__(self, own: Iterable[Tensor] = ()) -> None:
        # By identity: tensors on the meta device have no address.
        self._own = {id(storage): storage for storage in (t.untyped_storage() for t in own)}
        self._uses: Counter[int] = Counter()
        self._held_bytes = 0
        self.peak_bytes = 0
        """Most bytes kept at the same time."""

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count tensors saved within this block until they are released, in the block or later.

        Autograd leaves it to such hooks to refuse what was changed in place since; these refuse it too.
        """
        with saved_tensors_hooks(partial(_Kept, self), _Kept.unchanged):
            yield

    def _take(self, storage: torch.UntypedStorage) -> None:
        self._uses[id(storage)] += 1
        if self._uses[id(storage)] == 1 and id(storage) not in self._own:
            self._held_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self._held_bytes)

    def _leave(self, storage: torch.UntypedStorage) -> None:
        self._uses[id(storage)] -= 1
        if self._uses[id(storage)] == 0 and id(storage) not in self._own:
            self._held_bytes -= storage.nbytes()


class _Kept:
    """Wraps a tensor that autograd keeps, to notice when autograd releases it."""

    def __init__(self, counter: SavedBytes, tensor: Tensor) -> None:
        self._tensor = tensor
        self._version = version_of(tensor)
        self._counter = counter
        self._storage = tensor.untyped_storage()  # whose identity is no other's meanwhile
        counter._take(self._storage)

    def unchanged(self) -> Tensor:
        """Return the tensor.

        Raises:
            RuntimeError: it was changed in place meanwhile, so gradients would be wrong.
        """
        if version_of(self._tensor) != self._version:
            raise RuntimeError(
                f"one of the variables needed for gradient computation has been modified by an inplace "
                f"operation: a tensor of shape {tuple(self._tensor.shape)}, {self._tensor.dtype}"
            )
        return self._tensor

    def __del__(self) -> None:
        self._counter._leave(self._storage)


def version_of(tensor: Tensor) -> int:
    """Return how many times a tensor was changed in place; 0 for those that do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the sum of the tensors' sizes in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def device_peak_bytes(device: torch.device) -> int | None:
    """Return the peak bytes that this process allocated on a CUDA device; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
