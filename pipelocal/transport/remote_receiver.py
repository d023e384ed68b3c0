"""The receiving end of an edge between ranks; see :mod:`pipelocal.transport.endpoint` for both."""

from __future__ import annotations

import queue
from collections import deque

import psutil
from torch import Tensor

from pipelocal.errors import StageError
from pipelocal.telemetry.actions import Action, Recorder
from pipelocal.transport.channels import Channel, Token, WaitReceived
from pipelocal.transport.contract import Contract, Message
from pipelocal.transport.deal import EVERYTHING, Deal
from pipelocal.transport.edge import Check
from pipelocal.transport.endpoint import Endpoint, Waits, tell_nobody
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.window import Ring, Slot, check_room, ring_slots


class RemoteReceiver(Endpoint):
    """The receiving end; arguments as for :class:`~pipelocal.transport.remote_sender.RemoteSender`, and
    ``deal``: the batches that come here.

    The ring has as many slots as the window has batches: what is in use, and what may be under way.
    """

    def __init__(
        self,
        contract: Contract,
        channel: Channel,
        *,
        window: int,
        peer: str,
        check: Check,
        timeout_s: float,
        waits: Waits = tell_nobody,
        recorder: Recorder | None = None,
        deal: Deal = EVERYTHING,
    ) -> None:
        super().__init__(
            contract,
            channel,
            own=contract.target,
            peer=peer,
            check=check,
            waits=waits,
            timeout_s=timeout_s,
            recorder=recorder,
        )
        self.received_bytes = 0
        self._messages = {m.name: m for m in contract.messages}
        self._deal = deal
        self._last_number = -1
        self._arriving: deque[ArrivingBatch] = deque()
        if channel.device.type == "cpu":  # elsewhere the allocator refuses by itself
            check_room(contract, window, psutil.virtual_memory().available)
        slots = ring_slots(window)
        self._ring = Ring([Slot(contract, channel.device, channel.mark()) for _ in range(slots)])
        self._posted: queue.SimpleQueue[tuple[ArrivingBatch, list[_Arriving]] | None]
        self._posted = queue.SimpleQueue()
        self._start_threads()

    def receive(self) -> ArrivingBatch:
        return self.receive_number(self._deal.after(self._last_number))

    def receive_number(self, due: int) -> ArrivingBatch:
        self._batch = due
        with self._changed:
            self._wait_for(lambda: bool(self._arriving), "nothing from")
            batch = self._arriving.popleft()
        number = batch.header.number
        if number != due and (batch.header.kind.dealt or number <= self._last_number):
            raise StageError(
                f"batch {number} came from {self._peer} where {due} was next: a batch was lost",
                stage=self._own,
                batch=due,
            )
        self._last_number = number
        return batch

    def receive_end(self, number: int) -> None:
        self.receive_number(number).release()

    def wait_for_tensor(self, batch: ArrivingBatch, name: str) -> Message:
        """Wait until one tensor of a batch is there; what the contract says of it."""
        with self._changed:
            self._wait_for(lambda: name in batch.arrived, "nothing from")
        self._channel.join(batch.arrived[name])
        return self._messages[name]

    def give_back(self, slot: Slot) -> None:
        """A slot may be filled again once the device is past what it was asked so far."""
        slot.free = self._channel.mark()
        with self._changed:
            self._ring.give_back(slot)
            self._changed.notify_all()

    def _post(self) -> None:
        while True:
            frame = self._channel.receive_frame(self._layout.length)
            header = self._layout.read_header(frame)
            messages = self._contract.of_kind(header.kind)
            with self._changed:
                while not self._ring.has_free() and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                slot = self._ring.take()
            batch = ArrivingBatch(self, header, slot)
            for message in messages:
                if message.announced:
                    buffer = slot.buffers[message.name][: header.rows]
                    self.received_bytes += buffer.nbytes
                    data = self._layout.read(frame, message.name, header.rows)
                    batch.arrived[message.name] = self._channel.from_host(data, buffer, slot.free)
            with self._changed:
                self._arriving.append(batch)
                self._changed.notify_all()
            underway: list[_Arriving] = []
            for index, message in enumerate(self._contract.messages, start=1):
                if message in messages and not message.announced:
                    buffer = slot.buffers[message.name][: header.rows]
                    self.received_bytes += buffer.nbytes
                    action = self._action("recv", message.name, header.number, buffer.nbytes)
                    wait = self._channel.post_receive(buffer, slot.free, index)
                    underway.append((message.name, wait, action))
            self._posted.put((batch, underway))
            if header.kind == Kind.END:
                self._posted.put(None)
                return

    def _complete(self) -> None:
        while (posted := self._posted.get()) is not None:
            batch, underway = posted
            for name, wait, action in underway:
                token = wait()
                action.stop()
                with self._changed:
                    batch.arrived[name] = token
                    self._changed.notify_all()


_Arriving = tuple[str, WaitReceived, Action]
"""A tensor's name and its transfer under way."""


class ArrivingBatch:
    """A batch in a slot of the ring."""

    def __init__(self, receiver: RemoteReceiver, header: Header, slot: Slot) -> None:
        self.header = header
        self.arrived: dict[str, Token] = {}
        self._receiver = receiver
        self._slot = slot
        self._taken: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor:
        if name not in self._taken:
            message = self._receiver.wait_for_tensor(self, name)
            self._taken[name] = message.unpack(self._slot.buffers[name][: self.header.rows])
        return self._taken[name]

    def release(self) -> None:
        self._taken.clear()
        self._receiver.give_back(self._slot)
