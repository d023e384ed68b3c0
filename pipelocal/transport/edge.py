"""The two ends of an edge, whatever carries the bytes.

::

    stage k                                             stage k+1
    Sender.begin(header)
    Sender.send("target"), "ids"
    Sender.send("x", x)    ----- frame, x ----------->  Receiver.receive() -> IncomingBatch
                                                        batch.get("target"), batch.get("x")
    Sender.send("delta")   ----- delta -------------->  batch.get("delta")
    Sender.finish()                                     batch.release()

Ownership: what was given to ``send`` must not change until the transfer is done; the sender holds
the reference until then. What ``get`` returns belongs to the receiver until ``release``. The contract
says what is packed; ``send`` packs it, and ``get`` unpacks it.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from pipelocal.errors import StageError
from pipelocal.transport.header import Header

Check = Callable[[], None]
"""Called again and again by whatever waits; raises when the wait is in vain."""


class IncomingBatch(Protocol):
    """A batch under way; the header is there, the tensors come one by one."""

    @property
    def header(self) -> Header:
        """What this batch is."""

    def get(self, name: str) -> Tensor:
        """The tensor ``[rows, ...]``; waits until it is there."""

    def release(self) -> None:
        """Give the tensors' memory back; nothing may use them afterwards."""


class Receiver(Protocol):
    """The end of an edge at stage k+1."""

    @property
    def received_bytes(self) -> int:
        """Tensors that came in so far."""

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting so far."""

    def trouble(self) -> StageError | None:
        """What broke this end, if something did; does not wait."""

    def receive(self) -> IncomingBatch:
        """The next batch; waits until its header is there."""

    def close(self) -> None:
        """Stop; no error if transfers are still under way."""


class Sender(Protocol):
    """The end of an edge at stage k."""

    @property
    def sent_bytes(self) -> int:
        """Tensors that were sent so far."""

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting so far."""

    def trouble(self) -> StageError | None:
        """What broke this end, if something did; does not wait."""

    def begin(self, header: Header) -> None:
        """Announce a batch; waits until the window has room for it."""

    def send(self, name: str, tensor: Tensor) -> None:
        """Send one tensor of the announced batch, in the contract's order; does not wait."""

    def finish(self) -> None:
        """The announced batch is complete; does not wait."""

    def drain(self) -> None:
        """Wait until everything has been taken by the other end."""

    def close(self) -> None:
        """Stop; no error if transfers are still under way."""
