"""``--checkpoint-activations``: keep few activations, and compute the others again for the backward pass.

::

    forward    x > [group 1] > x2 > [group 2] > x3 > [group 3] > out      kept: x, x2, x3, all of group 3
    backward                        [group 2] again, its gradients        then kept: x, x2, all of group 2
               [group 1] again, its gradients                             then kept: x, all of group 1

Random numbers are those of the first time, and buffers such as BatchNorm's running statistics move the
first time only, so the bits of training do not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


class RecomputedBody:
    """Runs a stage's body in groups of units. The modules and their names stay as they are.

    Args:
        body: the units, in order.
        units: how many make a group. The last group is not computed again: it is needed first.
    """

    def __init__(self, body: nn.Sequential, units: int) -> None:
        modules = list(body)
        self._groups = [
            nn.Sequential(*modules[first : first + units])
            for first in range(0, len(modules), units)
        ]
        self._again = False
        self.kept_bytes = 0
        """At most this the backward pass holds at a time: the groups' inputs, and what the group that
        makes most makes. Counted on the first batch, by one more forward pass."""

    def __call__(self, x: Tensor) -> Tensor:
        """The body's output."""
        if self.kept_bytes == 0:
            self.kept_bytes = self._count(x)
        return self._run(x, moving_buffers=True)

    def without_moving_buffers(self, x: Tensor) -> Tensor:
        """The body's output; what it does to its buffers is done to copies."""
        return self._run(x, moving_buffers=False)

    def _run(self, x: Tensor, *, moving_buffers: bool) -> Tensor:
        def run(group: nn.Sequential, x: Tensor) -> Tensor:
            if moving_buffers and not self._again:
                out: Tensor = group(x)
                return out
            return without_moving_buffers(group, x)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), self._computing_again()

        *earlier, last = self._groups
        for group in earlier:
            x = checkpoint(run, group, x, use_reentrant=False, context_fn=contexts)
        return run(last, x)

    @contextmanager
    def _computing_again(self) -> Iterator[None]:
        self._again = True
        try:
            yield
        finally:
            self._again = False

    def _count(self, x: Tensor) -> int:
        devices = [x.device] if x.device.type == "cuda" else []
        inputs = largest = 0
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            for group in self._groups:
                inputs += x.nbytes
                made, x = _made_bytes(group, x)
                largest = max(largest, made)
        return inputs + largest


def _made_bytes(group: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    """Bytes that autograd would keep of a group, without the parameters; and the group's output."""
    saved: dict[int, torch.UntypedStorage] = {}
    own = {id(parameter.untyped_storage()) for parameter in group.parameters()}

    def note(tensor: Tensor) -> None:
        # The memory, not the tensor: a hook that holds a node's own output keeps both for ever.
        storage = tensor.untyped_storage()
        saved[id(storage)] = storage

    with saved_tensors_hooks(note, lambda _: x):
        out = without_moving_buffers(group, x).detach()
    made = sum(storage.nbytes() for key, storage in saved.items() if key not in own)
    return made, out.requires_grad_(out.is_floating_point())


def without_moving_buffers(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module; what it does to its buffers is done to copies."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    out: Tensor = functional_call(module, buffers, (x,))
    return out
