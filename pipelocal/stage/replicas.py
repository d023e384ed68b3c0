"""What a stage knows of its replicas: how many there are, and what they do together. No ranks here."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Replicas(Protocol):
    """The replicas of a stage, seen from one of them.

    All of them call the same methods in the same order; each call waits for the others.
    """

    @property
    def count(self) -> int:
        """How many there are."""

    @property
    def index(self) -> int:
        """Which one this is, from 0."""

    @property
    def sent_bytes(self) -> int:
        """What this one has had to send of its gradients so far, in bytes of payload."""

    @property
    def waited_s(self) -> float:
        """Seconds spent in these calls so far."""

    def average(self) -> None:
        """Make the parameters' gradients, and the floating-point buffers, the means over the replicas.

        A parameter without a gradient counts as one of zeros.
        """

    def updated(self) -> None:
        """The optimizer has made its step."""

    def each(self, values: Tensor) -> Tensor:
        """What each replica gives, ``[count, ...]`` in order; on the CPU, of one shape and dtype."""

    def whole(self, state: Any) -> Any:
        """A state of nested dicts and lists in which no tensor is shared out over the replicas."""


class Alone:
    """A stage without replicas."""

    count = 1
    index = 0
    sent_bytes = 0
    waited_s = 0.0

    def average(self) -> None:
        pass

    def updated(self) -> None:
        pass

    def each(self, values: Tensor) -> Tensor:
        return values.unsqueeze(0)

    def whole(self, state: Any) -> Any:
        return state


ALONE = Alone()
