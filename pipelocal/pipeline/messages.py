"""Names of the tensors of a batch, as stages ask their edges for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from pipelocal.data import DataInfo
from pipelocal.transport.contract import TRAIN_TARGET, names_beside
from pipelocal.transport.edge import IncomingBatch, Sender


@dataclass(frozen=True, kw_only=True)
class Messages:
    """What comes in with every batch."""

    beside: tuple[str, ...] = ()
    """Names of the inputs beside ``x``."""
    train_target: str = "target"
    """Name of the targets of training batches; those of evaluation are ``target``."""

    @classmethod
    def of(cls, info: DataInfo, beside: int) -> Self:
        """Return the names for some data, and a number of inputs beside ``x``."""
        target = "target" if info.train_target is None else TRAIN_TARGET
        return cls(beside=names_beside(beside), train_target=target)

    def inputs(self, batch: IncomingBatch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return ``x`` and what lies beside it; waits until they have arrived."""
        return batch.get("x"), tuple(batch.get(name) for name in self.beside)


PLAIN = Messages()


def named_outputs(output: Tensor, beside: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield a stage's outputs with the names under which they are sent, in the contract's order."""
    yield "x", output
    yield from zip(names_beside(len(beside)), beside, strict=True)


def send_outputs(outgoing: Sender, output: Tensor, beside: Sequence[Tensor]) -> None:
    """Send a stage's outputs on."""
    for name, tensor in named_outputs(output, beside):
        outgoing.send(name, tensor)
