"""Interface of the two ends of an edge, independent of what carries the bytes.

::

    stage k                                             stage k+1
    Sender.begin(header)
    Sender.send("ids"), "target"
    Sender.send("x", x)    ----- frame, x ----------->  Receiver.receive() -> IncomingBatch
                                                        batch.get("target"), batch.get("x")
    Sender.send("delta")   ----- delta -------------->  batch.get("delta")
    Sender.finish()                                     batch.release()

Ownership: a tensor given to ``send`` must not change until its transfer is done; the sender keeps a
reference until then. A tensor returned by ``get`` belongs to the receiver until ``release``. The contract
says which tensors are packed; ``send`` packs and ``get`` unpacks them.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from pipelocal.errors import StageError
from pipelocal.transport.header import Header

Check = Callable[[], None]
"""Called repeatedly during waits; raises when the wait has become pointless."""


class IncomingBatch(Protocol):
    """A batch being received: its header has arrived, its tensors follow one by one."""

    @property
    def header(self) -> Header:
        """The header of this batch."""

    def get(self, name: str) -> Tensor:
        """Return the tensor ``[rows, ...]``; waits until it has arrived."""

    def release(self) -> None:
        """Give the tensors' memory back; they must not be used afterwards."""


class Receiver(Protocol):
    """The end of an edge at stage k+1."""

    @property
    def received_bytes(self) -> int:
        """Bytes of tensors received so far."""

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting so far."""

    def trouble(self) -> StageError | None:
        """Return the failure of this end, if any; does not wait."""

    def receive(self) -> IncomingBatch:
        """Return the next batch; waits until its header has arrived."""

    def close(self) -> None:
        """Stop; transfers still in progress are no error."""


class ReceiverBack(Receiver, Protocol):
    """The end at stage k of an edge back from stage k+1, which only some batches use."""

    def receive_number(self, number: int) -> IncomingBatch:
        """Return what belongs to the batch with this number; waits until its header has arrived."""

    def receive_end(self, number: int) -> None:
        """Wait for the end of the stream, which is the event with this number."""


class Sender(Protocol):
    """The end of an edge at stage k."""

    @property
    def sent_bytes(self) -> int:
        """Bytes of tensors sent so far."""

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting so far."""

    def trouble(self) -> StageError | None:
        """Return the failure of this end, if any; does not wait."""

    def begin(self, header: Header) -> None:
        """Announce a batch; waits until the window has room for it."""

    def send(self, name: str, tensor: Tensor) -> None:
        """Send one tensor of the announced batch, in the contract's order; does not wait."""

    def finish(self) -> None:
        """Complete the announced batch; does not wait."""

    def drain(self) -> None:
        """Wait until everything has been taken by the other end."""

    def close(self) -> None:
        """Stop; transfers still in progress are no error."""
