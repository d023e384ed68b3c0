"""The receiving end of an edge between ranks; see :mod:`pipelocal.transport.endpoint` for both."""

from __future__ import annotations

import queue
import time
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from pipelocal.errors import StageError
from pipelocal.transport.channels import (
    FAREWELL_TAG,
    FIRST_TENSOR_TAG,
    FRAME_TAG,
    Channel,
    Token,
    WaitReceived,
)
from pipelocal.transport.contract import Contract, Message
from pipelocal.transport.deal import EVERYTHING, Deal
from pipelocal.transport.endpoint import Endpoint
from pipelocal.transport.frame import Frame, FrameLayout
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.window import (
    SHARE_OF_FREE,
    Growth,
    Window,
    check_room,
    free_bytes,
    most_slots,
    ring_slots,
)


class RemoteReceiver(Endpoint):
    """The receiving end.

    Its ring has memory for as many batches as the window: what is in use, and what may be under way. What is
    free waits in a lane, its receive posted, for the next message: a lane for frames, and one for each
    tensor that does not ride in them.

    Args:
        contract: what the edge carries.
        channel: how.
        window: as of the sending end.
        deal: the batches that come here.
        rest: further arguments of :class:`~pipelocal.transport.endpoint.Endpoint`.
    """

    def __init__(
        self,
        contract: Contract,
        channel: Channel,
        *,
        window: Window,
        deal: Deal = EVERYTHING,
        **rest: Any,
    ) -> None:
        super().__init__(contract, channel, own=contract.target, **rest)
        self.received_bytes = 0
        self.messages = {m.name: m for m in contract.messages}
        self._deal = deal
        self._last_number = -1
        self._arriving: queue.SimpleQueue[ArrivingBatch] = queue.SimpleQueue()
        if channel.device.type == "cpu":  # elsewhere the allocator refuses by itself
            check_room(contract, window, free_bytes(channel.device))
        self._tags = {m.name: tag for tag, m in enumerate(contract.messages, FIRST_TENSOR_TAG)}
        self._given_back: queue.SimpleQueue[tuple[Slot, dict[str, Tensor], Token] | None]
        self._given_back = queue.SimpleQueue()
        self._frames: queue.SimpleQueue[tuple[Slot, WaitReceived] | None] = queue.SimpleQueue()
        self._lanes: dict[str, queue.SimpleQueue[tuple[Tensor, WaitReceived]]] = {
            m.name: queue.SimpleQueue() for ms in self._layout.following.values() for m in ms
        }
        self._growth = Growth(ring_slots(window), most_slots(contract, window), self._room)
        self._waited_before_s = 0.0
        self._add_slots(self._growth.slots)
        self._start(self._post)
        self._start(self._wait)

    def receive(self) -> ArrivingBatch:
        return self.receive_number(self._deal.after(self._last_number))

    def receive_number(self, due: int) -> ArrivingBatch:
        batch = self._next_of(self._arriving, "nothing from")
        number = batch.header.number
        if number != due and (batch.header.kind.dealt or number <= self._last_number):
            raise StageError(
                f"event {number} came from {self._peer} where {due} was next: a batch was lost",
                stage=self._own,
            )
        self._last_number = number
        self._grow(batch)
        return batch

    def receive_end(self, number: int) -> None:
        self.receive_number(number).release()

    def wait_for_tensor(self, batch: ArrivingBatch, name: str) -> None:
        """Wait until a tensor is there that follows the frame of its batch."""
        while name not in batch.arrived:
            batch.arrived.add(self._next_of(batch.coming, "nothing from"))

    def give_back(self, batch: ArrivingBatch) -> None:
        """Let the memory of a batch be filled again, once the device is past what it was asked so far."""
        if batch.header.kind != Kind.END:
            self._given_back.put((batch.slot, batch.buffers, self._channel.mark()))

    def close(self) -> None:
        self._given_back.put(None)

    def _grow(self, batch: ArrivingBatch) -> None:
        """Add the slots that the link is seen to need."""
        kind, waited_s = batch.header.kind, self.waited_s - self._waited_before_s
        self._waited_before_s = self.waited_s
        if kind.trains:
            self._add_slots(self._growth.add(sender_s=batch.sender_waited_s, receiver_s=waited_s))
        elif kind not in (Kind.EPOCH, Kind.UPDATE):
            self._growth.interrupt()

    def _room(self) -> int:
        """Return for how many slots there is memory."""
        free = SHARE_OF_FREE * free_bytes(self._channel.device)
        return int(free / max(1, self._contract.batch_bytes))

    def _add_slots(self, count: int) -> None:
        for _ in range(count):
            buffers = {name: self._buffer(self.messages[name]) for name in self._lanes}
            slot = Slot(self._layout, self._channel)
            self._given_back.put((slot, buffers, self._channel.mark()))

    def _buffer(self, message: Message) -> Tensor:
        shape = (self._contract.max_rows, *message.shape)
        return torch.empty(shape, dtype=message.torch_dtype, device=self._channel.device)

    def _post(self) -> None:
        """Put what is given back into its lanes; a frame last, so that what follows it finds its place."""
        while (given := self._given_back.get()) is not None:
            slot, buffers, free = given
            slot.free = free
            for name, buffer in buffers.items():
                self._lanes[name].put((buffer, self._receive(buffer, free, self._tags[name])))
            self._frames.put((slot, self._receive(slot.frame.data, None, FRAME_TAG)))
        self._frames.put(None)

    def _receive(self, buffer: Tensor, free: Token, tag: int) -> WaitReceived:
        try:
            return self._channel.post_receive(buffer, free, tag)
        except RuntimeError as error:
            # The other end may have left. That is an error only if something is still to come from it.
            return partial(_fail, error)

    def _wait(self) -> None:
        """Announce what has arrived, until the end."""
        while (posted := self._frames.get()) is not None:
            slot, wait = posted
            since = time.perf_counter()
            wait(self._layout.size)
            header = slot.frame.read()
            if header.kind == Kind.END:
                self._farewell = torch.empty(1, dtype=torch.uint8)
                self._last_wait = self._receive(self._farewell, None, FAREWELL_TAG)
            tensors = slot.land(header)
            for message in self._layout.riding[header.kind]:
                size = header.rows * message.bytes_per_row
                self.received_bytes += size
                if not message.announced:
                    action = self._action("recv", message.name, header.number, size)
                    action.started = since
                    action.stop()
            messages = self._layout.following[header.kind]
            following = [(m, *self._lanes[m.name].get()) for m in messages]
            buffers = {m.name: buffer for m, buffer, _ in following}
            batch = ArrivingBatch(self, header, slot, tensors, buffers)
            self._arriving.put(batch)
            for message, _, wait in following:
                size = header.rows * message.bytes_per_row
                action = self._action("recv", message.name, header.number, size)
                wait(header.rows)
                action.stop()
                self.received_bytes += size
                batch.coming.put(message.name)
            if header.kind == Kind.END:
                return


class Slot:
    """Memory for a frame, and for what rides in it where it is used, which on the CPU is the same.

    Args:
        layout: of the frame.
        channel: of the edge.
    """

    def __init__(self, layout: FrameLayout, channel: Channel) -> None:
        self.frame = Frame(layout, channel.host_memory(layout.size))
        self.free: Token = None
        """The point of the device's work from which on it may be filled."""
        self._channel = channel
        self._on_device: dict[str, Tensor] = {}
        if channel.device.type != "cpu":
            for kind in layout.riding:
                riding, _ = self.frame.load(kind, layout.max_rows)
                self._on_device |= {
                    name: torch.empty_like(tensor, device=channel.device)
                    for name, tensor in riding.items()
                }

    def land(self, header: Header) -> dict[str, Tensor]:
        """Return what has arrived in the frame, ``[rows, ...]``, where it is used."""
        arrived, _ = self.frame.load(header.kind, header.rows)
        if not self._on_device:
            return arrived
        places = {name: self._on_device[name][: header.rows] for name in arrived}
        for name, tensor in arrived.items():
            self._channel.from_host(tensor, places[name], self.free)
        return places


class ArrivingBatch:
    """A batch in the ring."""

    def __init__(
        self,
        receiver: RemoteReceiver,
        header: Header,
        slot: Slot,
        tensors: dict[str, Tensor],
        buffers: dict[str, Tensor],
    ) -> None:
        self.header = header
        self.sender_waited_s = slot.frame.read_wait()
        """How long the sender waited for room for it, in seconds."""
        self.slot = slot
        self.buffers = buffers
        """Where what follows the frame arrives."""
        self.coming: queue.SimpleQueue[str] = queue.SimpleQueue()
        """Names of what has arrived after the frame."""
        self.arrived: set[str] = set()
        self._receiver = receiver
        self._tensors = tensors
        self._taken: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor:
        if name not in self._taken:
            data = self._tensors.get(name)
            if data is None:
                self._receiver.wait_for_tensor(self, name)
                data = self.buffers[name][: self.header.rows]
            self._taken[name] = self._receiver.messages[name].unpack(data)
        return self._taken[name]

    def release(self) -> None:
        self._taken.clear()
        self._receiver.give_back(self)


def _fail(error: Exception, _rows: int) -> NoReturn:
    raise error
