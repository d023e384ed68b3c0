"""``--checkpoint-activations``: keep few activations and recompute the others for the backward pass.

::

    forward    x > [group 1] > x2 > [group 2] > x3 > [group 3] > out      kept: x, x2, x3, all of group 3
    backward                        [group 2] again, its gradients        then kept: x, x2, all of group 2
               [group 1] again, its gradients                             then kept: x, all of group 1

A recomputation starts from the random state and the buffers of the first pass, and updates no buffer, such
as BatchNorm's running statistics. So the bits of training do not change.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from pipelocal.models.payload import Payload, each, tensors_of
from pipelocal.models.trial import shadow
from pipelocal.seeding import other_generators, restored, set_other_generators
from pipelocal.stage.replay import Buffers, copies_of_buffers, leaving_input, replay


class RecomputedBody:
    """Runs a stage's body in groups of units. The modules and their names stay as they are.

    Args:
        body: the units, in order.
        units: units per group. The last group is not recomputed: the backward pass needs it first.
    """

    def __init__(self, body: nn.Sequential, units: int) -> None:
        # Slices of the body, so that modules keep their names.
        self._groups = [body[first : first + units] for first in range(0, len(body), units)]
        self._again = False
        self.kept_bytes = 0
        """Peak bytes that the backward pass holds: the groups' inputs, and the activations of the
        largest group. Measured on the first batch, by an extra forward pass of copies."""

    def __call__(self, x: Payload) -> Any:
        """Compute the body's output."""
        if self.kept_bytes == 0:
            self.kept_bytes = self._count(x)
        return self._run(x, None)

    def replay(self, x: Payload, before: Buffers) -> Any:
        """See :func:`~pipelocal.stage.replay.replay`."""
        return self._run(x, before)

    def _run(self, x: Payload, before: Buffers | None) -> Any:
        """Run with the given copies of buffers, or with the body's own, which are updated."""

        def run(group: nn.Module, x: Payload, buffers: Buffers) -> Any:
            if before is not None or self._again:
                return replay(group, x, before=buffers)
            return leaving_input(group, x)

        *earlier, last = self._groups
        for group in earlier:
            buffers = copies_of_buffers(group) if before is None else before
            x = checkpoint(run, group, x, buffers, use_reentrant=False, context_fn=self._contexts)
        return run(last, x, before or {})

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        states = other_generators()  # checkpoint takes care of torch's
        body = self

        class ComputingAgain(AbstractContextManager[None]):
            """Entered by each backward pass through the group, of which there may be several."""

            def __enter__(self) -> None:
                body._again = True
                # Not restored: a stage reseeds before it draws again.
                set_other_generators(states)

            def __exit__(self, *_: object) -> None:
                body._again = False

        return nullcontext(), ComputingAgain()

    def _count(self, x: Payload) -> int:
        device = tensors_of(x)[0].device
        devices = [device] if device.type == "cuda" else []
        inputs = largest = 0
        fork = torch.random.fork_rng(devices=devices)
        with fork, restored(other_generators()), torch.enable_grad():
            for group in self._groups:
                inputs += sum(tensor.nbytes for tensor in tensors_of(x))
                made, x = _made_bytes(group, x)
                largest = max(largest, made)
        return inputs + largest


def _made_bytes(group: nn.Module, x: Payload) -> tuple[int, Payload]:
    """Return the bytes that autograd keeps of a group, without parameters, and the group's output."""
    saved: dict[int, torch.UntypedStorage] = {}
    own = {id(parameter.untyped_storage()) for parameter in group.parameters()}

    def note(tensor: Tensor) -> None:
        # Keep the storage, not the tensor: a hook that holds its node's output leaks both.
        storage = tensor.untyped_storage()
        saved[id(storage)] = storage

    with saved_tensors_hooks(note, lambda _: tensors_of(x)[0]):
        out = leaving_input(shadow(group), x)
    made = sum(storage.nbytes() for key, storage in saved.items() if key not in own)
    return made, each(lambda t: t.detach().requires_grad_(t.is_floating_point()), out)
