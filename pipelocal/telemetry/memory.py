"""How many bytes tensors take, counted one by one: exact, and the same on every device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class SavedBytes:
    """Counts the bytes that autograd keeps for backward passes, and when it lets go of them.

    A tensor that is saved twice, or whose memory another saved tensor shares, counts once.

    Args:
        own: tensors that do not count, such as parameters.
    """

    def __init__(self, own: Iterable[Tensor] = ()) -> None:
        # By identity, which tensors on the meta device have too, unlike an address.
        self._own = {id(storage): storage for storage in (t.untyped_storage() for t in own)}
        self._uses: Counter[int] = Counter()
        self._held_bytes = 0
        self.peak_bytes = 0
        """Most that was kept at a time."""

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is saved within this block, until it is let go, in the block or later."""
        with saved_tensors_hooks(partial(_Kept, self), lambda kept: kept.tensor):
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
    """A tensor that autograd keeps; when it lets go of this, it lets go of the tensor."""

    def __init__(self, counter: SavedBytes, tensor: Tensor) -> None:
        self.tensor = tensor
        self._counter = counter
        self._storage = tensor.untyped_storage()  # whose identity is no other's meanwhile
        counter._take(self._storage)

    def __del__(self) -> None:
        self._counter._leave(self._storage)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Sum of the tensors' sizes in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def device_peak_bytes(device: torch.device) -> int | None:
    """Peak of what this process allocated on a CUDA device; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
