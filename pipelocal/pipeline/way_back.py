"""The ends of what flows back at one stage: to the stage before it, and from the one behind it.

::

    stage k-1            < edge back <   stage k   < edge back <             stage k+1
    takes (from_next)                 gives and takes              gives (to_previous)

What is used in the batch that carries it splits that batch in two parts: up to its backward pass, which needs
nothing of later stages, and the rest. A rank with several stages does the rest from its last to its first.

Weights are used a period late, so no batch waits for the next stage's. What has not come from the last stage
yet is not sent either (``-``), so a number of exchanges says what stages send and what they draw to::

    exchange          1    2    3    4          w_n: the last stage's weights as of exchange n
    stage 4 sends     w_1  w_2  w_3  w_4
    stage 3 sends     -    w_1  w_2  w_3        and draws to the same
    stage 2 sends     -    -    w_1  w_2
    stage 1 draws to  -    -    -    w_1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pipelocal.errors import StageError
from pipelocal.objective import WayBack
from pipelocal.stage.layout import apart
from pipelocal.stage.stage import Stage
from pipelocal.telemetry.actions import Action
from pipelocal.transport.edge import IncomingBatch, ReceiverBack, Sender
from pipelocal.transport.header import Header, Kind

Values = Mapping[str, Tensor]
"""What travels, by the messages' names, ``[rows, ...]``."""


class TakesAndGives(Protocol):
    """What a stage does with what flows back."""

    doing: str
    """Name of the action in a trace."""

    def take(self, came: Values) -> None:
        """Use what came from the next stage, whose memory is used again afterwards."""

    def give(self) -> Values:
        """Return what goes to the stage before: what came, or what does not change from now on."""


class Gradients:
    """What an objective sends back: a gradient of the batch.

    Args:
        stage: whose objective it is.
        name: of the message.
    """

    doing = "backward"

    def __init__(self, stage: Stage, name: str) -> None:
        self._stage = stage
        self._name = name

    def take(self, came: Values) -> None:
        self._stage.take_back(came[self._name])

    def give(self) -> Values:
        return {self._name: self._stage.give_back()}


@dataclass(kw_only=True)
class WayBackEnds:
    """A stage's ends of the edges back; without any, nothing flows back."""

    way: WayBack | None = None
    """What flows back; None for nothing."""
    own: TakesAndGives | None = None
    """What the stage does with it; None for nothing."""
    to_previous: Sender | None = None
    """None at the first stage."""
    from_next: ReceiverBack | None = None
    """None at the last stage."""
    hops: int = 0
    """Stages behind this one."""
    exchanges: int = 0
    """How many there were of weights."""
    under_way: Values = field(default_factory=dict)
    """The weights that were sent last, which the stage before uses at its next exchange."""

    @property
    def late(self) -> bool:
        """Whether it is weights that flow back, which are used a period late."""
        return self.way is not None and bool(self.way.weights)

    def waits(self, header: Header) -> bool:
        """Return whether a training batch waits for what comes back for it."""
        return self.way is not None and not self.late and self.way.carries(header.step)

    def updated(self, before: int, after: int, action: Callable[[str], Action]) -> None:
        """Exchange weights after an update, if it is one that carries them.

        Args:
            before: training batches of the run up to the update before.
            after: those up to this update; the same if there was none.
            action: records what is done, by its name.
        """
        if self.way is None or not self.late or not self.way.carries(before, after):
            return
        self.exchanges += 1
        if self.exchanges > self.hops:
            self.exchange(self._header(), action)

    def exchange(self, header: Header, action: Callable[[str], Action]) -> None:
        """Give the stage before what goes back to it, and take what the next one sends back.

        Args:
            header: of what is given; of a batch, after the stage's own backward pass on it.
            action: records what is done, by its name.
        """
        assert self.way is not None
        assert self.own is not None
        if not self.way.passed_on:
            self._give(header, action, {})
        came, taken = None, dict[str, Tensor]()
        if self.from_next is not None:
            with action("receive"):
                if self.late:
                    came = self._late(header.number - 1)
                else:
                    came = self.from_next.receive_number(header.number)
                names = [kind.name for kind in self.way.weights] or [self.way.name]
                taken = {name: came.get(name) for name in names}
            with action(self.own.doing):
                self.own.take(taken)
        if self.way.passed_on:
            # The memory of what came is used again while this is on its way.
            self._give(header, action, taken)
        if came is not None:
            came.release()

    def _late(self, number: int) -> IncomingBatch:
        """Return the weights of this exchange, which come to all replicas, and from all."""
        assert self.from_next is not None
        came = self.from_next.receive()
        assert came.header.number == number, f"{came.header} came, and {number} was next"
        return came

    def _give(self, header: Header, action: Callable[[str], Action], borrowed: Values) -> None:
        if self.to_previous is None:
            return
        assert self.own is not None
        with action(self.own.doing):
            others = borrowed.values()
            given = {name: apart(tensor, *others) for name, tensor in self.own.give().items()}
        with action("send"):
            self._send(header, given)
        if self.late:
            self.under_way = given

    def _send(self, header: Header, given: Values) -> None:
        assert self.to_previous is not None
        self.to_previous.begin(header)
        for name, tensor in given.items():
            self.to_previous.send(name, tensor)
        self.to_previous.finish()

    def _header(self) -> Header:
        """Return the header of the weights of the last exchange."""
        return Header(kind=Kind.UPDATE, number=self.exchanges, rows=1, epoch=0, step=0)

    def end(self, number: int) -> None:
        """End the stream back: tell the stage before, and wait for the next stage's end.

        So no rank leaves while another still sends to it.

        Args:
            number: of the last event, which is the end of the stream forward.
        """
        number = self.exchanges + 1 if self.late else number
        if self.to_previous is not None:
            self.to_previous.begin(Header(kind=Kind.END, number=number, rows=0, epoch=0, step=0))
            self.to_previous.finish()
            self.to_previous.drain()
        if self.from_next is not None:
            if self.late and self.exchanges >= self.hops:
                self._late(self.exchanges).release()  # the last ones, which nobody uses
            self.from_next.receive_end(number)

    def state_dict(self) -> dict[str, Any]:
        """Return how many exchanges there were, and what is under way to the stage before."""
        return {"exchanges": self.exchanges, "under_way": dict(self.under_way)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Load a :meth:`state_dict`, and send again what was under way."""
        self.exchanges = state["exchanges"]
        self.under_way = {name: kept.to(device) for name, kept in state["under_way"].items()}
        if self.under_way:
            self._send(self._header(), self.under_way)

    @property
    def sent_bytes(self) -> int:
        """Bytes sent back so far."""
        return 0 if self.to_previous is None else self.to_previous.sent_bytes

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting so far."""
        return sum(end.waited_s for end in self._ends)

    def trouble(self) -> StageError | None:
        """Return the failure of either end, if any."""
        return next(filter(None, (end.trouble() for end in self._ends)), None)

    def close(self) -> None:
        """Close both ends."""
        for end in self._ends:
            end.close()

    @property
    def _ends(self) -> list[Sender | ReceiverBack]:
        return [end for end in (self.to_previous, self.from_next) if end is not None]
