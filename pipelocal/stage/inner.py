"""Keeps what units within a stage passed on, for objectives that have heads there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from pipelocal.models.payload import Payload


class InnerOutputs:
    """The outputs of some units in the first pass on a batch, by hooks on the units.

    Args:
        body: the units, in order.
        watches: numbers of the units, from 1.
    """

    def __init__(self, body: nn.Sequential, watches: Sequence[int]) -> None:
        self.found: dict[int, Payload] = {}
        """What they passed on, with its graph, by the unit's number."""
        self._noting = False
        for number in watches:
            body[number - 1].register_forward_hook(partial(self._passed_on, number))

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what units pass on in a block; what they did before is forgotten."""
        self._noting, self.found = True, {}
        try:
            yield
        finally:
            self._noting = False

    def _passed_on(
        self, number: int, unit: nn.Module, inputs: tuple[Any, ...], output: Payload
    ) -> None:
        del unit, inputs
        if self._noting:
            self.found[number] = output
