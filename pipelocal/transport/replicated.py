"""The ends of an edge between stages of which one or both have replicas: several edges that act as one.

::

    stage 2, replica 0 -- 0, 2, 4 ... -->  CollectingReceiver  DealingSender  -- 0, 2, 4 ... --> stage 4,
    stage 2, replica 1 -- 1, 3, 5 ... -->       stage 3           stage 3     -- 1, 3, 5 ... --> replicas

Each batch goes to the one whose turn it is (:mod:`~pipelocal.transport.deal`). A marker goes to all, and
comes from all: it is met once it has come from every sender, which is when all batches before it have been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from pipelocal.errors import StageError
from pipelocal.transport.deal import Deal
from pipelocal.transport.edge import IncomingBatch, ReceiverBack, Sender
from pipelocal.transport.header import Header


class DealingSender:
    """Sends to all replicas of the next stage.

    Args:
        senders: by the replica's number, those that this rank ever sends to.
        replicas: how many the next stage has.
    """

    def __init__(self, senders: Mapping[int, Sender], *, replicas: int) -> None:
        self._senders = senders
        self._replicas = replicas
        self._current: Sequence[Sender] = ()

    @property
    def sent_bytes(self) -> int:
        """Of all edges together."""
        return sum(sender.sent_bytes for sender in self._senders.values())

    @property
    def waited_s(self) -> float:
        """On all edges together."""
        return sum(sender.waited_s for sender in self._senders.values())

    def trouble(self) -> StageError | None:
        return next(filter(None, (sender.trouble() for sender in self._senders.values())), None)

    def begin(self, header: Header) -> None:
        if header.kind.dealt:
            self._current = [self._senders[header.number % self._replicas]]
        else:
            self._current = list(self._senders.values())
        for sender in self._current:
            sender.begin(header)

    def send(self, name: str, tensor: Tensor) -> None:
        for sender in self._current:
            sender.send(name, tensor)

    def finish(self) -> None:
        for sender in self._current:
            sender.finish()

    def drain(self) -> None:
        for sender in self._senders.values():
            sender.drain()

    def close(self) -> None:
        for sender in self._senders.values():
            sender.close()


class CollectingReceiver:
    """Receives from all replicas of the stage before, in the order of the stream.

    Args:
        receivers: by the replica's number, those that ever send to this rank.
        replicas: how many the stage before has.
        deal: the batches of this rank.
        own: number of the receiving stage, for errors.
    """

    def __init__(
        self, receivers: Mapping[int, ReceiverBack], *, replicas: int, deal: Deal, own: int
    ) -> None:
        self._receivers = receivers
        self._replicas = replicas
        self._deal = deal
        self._own = own
        self._last = -1

    @property
    def received_bytes(self) -> int:
        """Of all edges together."""
        return sum(receiver.received_bytes for receiver in self._receivers.values())

    @property
    def waited_s(self) -> float:
        """On all edges together."""
        return sum(receiver.waited_s for receiver in self._receivers.values())

    def trouble(self) -> StageError | None:
        return next(filter(None, (each.trouble() for each in self._receivers.values())), None)

    def receive(self) -> IncomingBatch:
        # Where the next batch comes from is known; if a marker is before it, it stands there too.
        turn = self._receivers[self._deal.after(self._last) % self._replicas]
        batch = turn.receive()
        if not batch.header.kind.dealt:
            others = [each.receive() for each in self._receivers.values() if each is not turn]
            for header in {copy.header for copy in others} - {batch.header}:
                raise StageError(
                    f"the replicas of stage {self._own - 1} disagree: {batch.header} came from one of "
                    f"them where {header} came from another",
                    stage=self._own,
                )
            for copy in others:
                copy.release()
        self._last = batch.header.number
        return batch

    def receive_number(self, number: int) -> IncomingBatch:
        return self._receivers[number % self._replicas].receive_number(number)

    def receive_end(self, number: int) -> None:
        for receiver in self._receivers.values():
            receiver.receive_end(number)

    def close(self) -> None:
        for receiver in self._receivers.values():
            receiver.close()
