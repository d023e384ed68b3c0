"""A stage's view of its replicas: their number, and what they do together; knows no ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from torch import Tensor

Weight = Tensor | float
"""How much of a batch, or of several, counts: its rows, tokens or pixels."""

T = TypeVar("T")
Wait = Callable[[], T]
"""Waits for what was begun, and returns it; to be called once."""


class Replicas(Protocol):
    """The replicas of a stage, seen from one of them.

    All replicas call the same methods in the same order; a call waits for the others, or returns what does.
    """

    @property
    def count(self) -> int:
        """Number of replicas."""

    @property
    def index(self) -> int:
        """Index of this replica, from 0."""

    @property
    def sent_bytes(self) -> int:
        """Bytes of gradient payload that this replica has sent so far."""

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting so far."""

    def begin_average(self, weight: Weight) -> Wait[Weight]:
        """Begin to replace gradients and floating-point buffers by their means over the replicas.

        A missing gradient counts as zeros. Neither may be used until it is waited for.

        Args:
            weight: how much counts in this replica's gradients.

        Returns:
            What waits, and returns the sum of all replicas' weights.
        """

    def holding_gradients(self, parameters: Iterable[Tensor]) -> Iterable[Tensor]:
        """Return what holds the gradients of an optimizer's parameters before they are averaged."""

    def updated(self) -> None:
        """Tell the replicas that the optimizer has made its step."""

    def each(self, values: Tensor) -> Tensor:
        """Gather a tensor per replica, ``[count, ...]`` in order; on the CPU, all of one shape and dtype."""

    def whole(self, state: Any) -> Any:
        """Return a state of nested dicts and lists with any tensors sharded over the replicas gathered."""


class Alone:
    """A stage without replicas."""

    count = 1
    index = 0
    sent_bytes = 0
    waited_s = 0.0

    def begin_average(self, weight: Weight) -> Wait[Weight]:
        return lambda: weight

    def holding_gradients(self, parameters: Iterable[Tensor]) -> Iterable[Tensor]:
        return parameters

    def updated(self) -> None:
        pass

    def each(self, values: Tensor) -> Tensor:
        return values.unsqueeze(0)

    def whole(self, state: Any) -> Any:
        return state


ALONE = Alone()
