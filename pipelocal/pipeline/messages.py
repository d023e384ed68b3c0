"""Names of the tensors of a batch, as stages ask their edges for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from pipelocal.data import DataInfo
from pipelocal.objective import Relay
from pipelocal.transport.contract import TRAIN_TARGET, names_beside
from pipelocal.transport.edge import IncomingBatch, Sender


@dataclass(frozen=True, kw_only=True)
class Messages:
    """What comes in with every batch."""

    beside: tuple[str, ...] = ()
    """Names of the inputs beside ``x``."""
    train_target: str = "target"
    """Name of the targets of training batches; those of evaluation are ``target``."""
    relayed: Mapping[str, str] = field(default_factory=dict)
    """Names of what the objective has relayed to this stage, by the objective's own names."""
    relays: Mapping[str, str] = field(default_factory=dict)
    """The same for what is relayed to the next stage, by the name under which it is sent."""

    @classmethod
    def of(cls, info: DataInfo, beside: int, stage: int = 1, relays: Sequence[Relay] = ()) -> Self:
        """Return the names for a stage.

        Args:
            info: description of the data.
            beside: number of inputs beside ``x``.
            stage: number of the stage.
            relays: what the objective has relayed anywhere.
        """
        seen = [relay for relay in relays if relay.of < stage <= relay.until]
        comes = {r.name: "x" if r.of == stage - 1 else relay_name(r.name) for r in seen}
        return cls(
            beside=names_beside(beside),
            train_target="target" if info.train_target is None else TRAIN_TARGET,
            relayed=comes,
            relays={relay_name(r.name): comes[r.name] for r in seen if r.crosses(stage)},
        )

    def inputs(self, batch: IncomingBatch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return ``x`` and what lies beside it; waits until they have arrived."""
        return batch.get("x"), tuple(batch.get(name) for name in self.beside)

    def relayed_to(self, batch: IncomingBatch) -> dict[str, Tensor]:
        """Return what the objective has relayed to this stage, by the objective's own names."""
        return {name: batch.get(message) for name, message in self.relayed.items()}

    def passed_on(self, batch: IncomingBatch) -> dict[str, Tensor]:
        """Return copies of what is relayed to the next stage; the memory of what came in is used again."""
        return {name: batch.get(message).clone() for name, message in self.relays.items()}


PLAIN = Messages()


def relay_name(name: str) -> str:
    """Return the name of a message that relays what an objective calls so."""
    return f"relay {name}"


def named_outputs(output: Tensor, beside: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield a stage's outputs with the names under which they are sent, in the contract's order."""
    yield "x", output
    yield from zip(names_beside(len(beside)), beside, strict=True)


def send_all(outgoing: Sender, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Send tensors on, in the contract's order."""
    for name, tensor in tensors:
        outgoing.send(name, tensor)
