"""The ends of what flows back at one stage: to the stage before it, and from the one behind it.

::

    stage k-1            < edge back <   stage k   < edge back <             stage k+1
    takes (from_next)                 gives and takes              gives (to_previous)

A batch that carries something back is trained in two parts: up to its backward pass, which needs nothing of
later stages, and the rest. A rank with several stages does the rest from its last to its first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipelocal.errors import StageError
from pipelocal.objective import WayBack
from pipelocal.stage.layout import apart
from pipelocal.stage.stage import Stage
from pipelocal.telemetry.actions import Action
from pipelocal.transport.edge import ReceiverBack, Sender
from pipelocal.transport.header import Header, Kind


@dataclass(frozen=True, kw_only=True)
class WayBackEnds:
    """A stage's ends of the edges back."""

    way: WayBack | None = None
    """What the objective sends back; None for nothing."""
    to_previous: Sender | None = None
    """None at the first stage."""
    from_next: ReceiverBack | None = None
    """None at the last stage."""

    def carries(self, header: Header) -> bool:
        """Return whether a training batch carries something back."""
        return self.way is not None and self.way.carries(header.step)

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

    def exchange(self, stage: Stage, header: Header, action: Callable[[str], Action]) -> None:
        """Give the stage before what goes back to it, and take what the next one sends back.

        Args:
            stage: this stage, after its own backward pass on the batch.
            header: of the batch.
            action: records what is done, by its name.
        """
        assert self.way is not None
        if not self.way.passed_on:
            self._give(stage, header, action, ())
        came = None
        if self.from_next is not None:
            with action("receive"):
                came = self.from_next.receive_number(header.number)
                returned = came.get(self.way.name)
            with action("backward"):
                stage.take_back(returned)
        if self.way.passed_on:
            # The memory of what came is used again while this is on its way.
            self._give(stage, header, action, () if came is None else (returned,))
        if came is not None:
            came.release()

    def _give(
        self,
        stage: Stage,
        header: Header,
        action: Callable[[str], Action],
        borrowed: Sequence[Tensor],
    ) -> None:
        if self.to_previous is None:
            return
        assert self.way is not None
        with action("backward"):
            given = apart(stage.give_back(), *borrowed)
        with action("send"):
            self.to_previous.begin(header)
            self.to_previous.send(self.way.name, given)
            self.to_previous.finish()

    def end(self, number: int) -> None:
        """End the stream back: tell the stage before, and wait for the next stage's end.

        So no rank leaves while another still sends to it.

        Args:
            number: of the last event, which is the end of the stream forward.
        """
        if self.to_previous is not None:
            self.to_previous.begin(Header(kind=Kind.END, number=number, rows=0, epoch=0, step=0))
            self.to_previous.finish()
            self.to_previous.drain()
        if self.from_next is not None:
            self.from_next.receive_end(number)

    def close(self) -> None:
        """Close both ends."""
        for end in self._ends:
            end.close()

    @property
    def _ends(self) -> list[Sender | ReceiverBack]:
        return [end for end in (self.to_previous, self.from_next) if end is not None]


NOTHING_BACK = WayBackEnds()
