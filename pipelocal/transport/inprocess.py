"""An edge between two stages of one process: tensors are handed over, not copied.

Tensors that are packed on a wire are packed and unpacked here too, so that the next stage gets the same bits.
"""

from collections import deque

from torch import Tensor

from pipelocal.transport.contract import Contract
from pipelocal.transport.header import Header


class InProcessEdge:
    """Both ends in one. The two stages take turns, so nothing ever waits and one batch is held.

    It counts bytes like any other edge, as if the stages were on different ranks.
    """

    waited_s = 0.0

    def __init__(self, contract: Contract) -> None:
        self._messages = {m.name: m for m in contract.messages}
        self._batches: deque[HandedBatch] = deque()
        self.sent_bytes = 0
        self.received_bytes = 0

    def trouble(self) -> None:
        return None

    def begin(self, header: Header) -> None:
        self._batches.append(HandedBatch(header))

    def send(self, name: str, tensor: Tensor) -> None:
        message = self._messages[name]
        self._batches[-1].tensors[name] = message.unpack(message.pack(tensor.detach()))
        self.sent_bytes += len(tensor) * message.bytes_per_row
        self.received_bytes = self.sent_bytes

    def finish(self) -> None:
        pass

    def drain(self) -> None:
        pass

    def receive(self) -> "HandedBatch":
        assert self._batches, "the sending stage takes its turn first"
        return self._batches.popleft()

    def receive_number(self, number: int) -> "HandedBatch":
        batch = self.receive()
        assert batch.header.number == number, "stages of one process take the same batches"
        return batch

    def receive_end(self, number: int) -> None:
        self.receive_number(number).release()

    def close(self) -> None:
        self._batches.clear()


class HandedBatch:
    """A batch handed over within the process."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.tensors: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor:
        return self.tensors[name]

    def release(self) -> None:
        self.tensors.clear()
