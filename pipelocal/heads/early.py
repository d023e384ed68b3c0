"""The network up to a stage, with that stage's head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from pipelocal.heads.build import call_head
from pipelocal.models.payload import pack


class EarlyNetwork(nn.Module):
    """The bodies up to a stage in sequence, and the head of that stage.

    Args:
        bodies: the bodies of the stages, in order.
        head: the head of the last of them.
    """

    def __init__(self, bodies: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        self.head = head

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the head's output, such as logits ``[B, ..., classes]``."""
        return through(self.bodies, self.head, inputs)


def through(bodies: Iterable[nn.Module], head: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """Compute a head's output behind bodies in sequence, from the model's inputs."""
    x = before = pack(inputs[0], tuple(inputs[1:]))
    for body in bodies:
        before, x = x, body(x)
    return call_head(head, x, before)
