"""The two ends of an edge between ranks: threads, a bounded window, no waiting without a way out.

::

    sending rank                                       receiving rank
    compute thread          edge threads               edge threads            compute thread
    begin, send, finish ->  [queue, <= window]  ====>  [ring, >= 2 slots]   -> receive, get, release
                             post | wait                post | wait

The transfers wait on threads of their own, so that they go on while the model computes, and so that
the compute thread only ever waits on a condition that a failure elsewhere can break. One thread starts
the transfers of a batch while another still waits for those of the batch before: over a long link a
batch takes several trips (frame, the receiver's answer that it is ready, tensors), and those of one
batch must not wait for those of another.
"""

from __future__ import annotations

import queue
from collections import deque
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from pipelocal.errors import StageError
from pipelocal.telemetry.actions import Action, Recorder
from pipelocal.transport.channels import Channel, Token, WaitReceived, WaitSent
from pipelocal.transport.contract import Contract, Message
from pipelocal.transport.deal import EVERYTHING, Deal
from pipelocal.transport.edge import Check
from pipelocal.transport.endpoint import Endpoint, Waits, check_room, ring_slots, tell_nobody
from pipelocal.transport.header import Header, Kind


class RemoteSender(Endpoint):
    """The sending end.

    Args:
        contract: what the edge carries.
        channel: how.
        window: most batches that are sent but not yet taken by the other end.
        peer: name of the other end, for error messages.
        check: raises when another rank has failed.
        timeout_s: longest wait for room in the window, in seconds.
        waits: told when this rank begins (True) and ends to wait for the other end.
        recorder: takes the transfers, and when they were; None for nobody.
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
    ) -> None:
        super().__init__(
            contract,
            channel,
            own=contract.source,
            peer=peer,
            check=check,
            waits=waits,
            timeout_s=timeout_s,
            recorder=recorder,
        )
        self.sent_bytes = 0
        self._window = window
        self._unfinished = 0
        self._expected: deque[str] = deque()
        self._announced: _Announced | None = None
        self._index = {m.name: i + 1 for i, m in enumerate(contract.messages)}
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._posted: queue.SimpleQueue[list[_Leaving]] = queue.SimpleQueue()
        self._start_threads()

    def begin(self, header: Header) -> None:
        self._batch = header.number
        with self._changed:
            self._wait_for(lambda: self._unfinished < self._window, "no room towards")
            self._unfinished += 1
        self._expected = deque(m.name for m in self._contract.of_kind(header.kind))
        self._announced = (header, {})

    def send(self, name: str, tensor: Tensor) -> None:
        wanted = self._expected.popleft() if self._expected else None
        assert wanted == name, f"the contract wants {wanted} next, not {name}"
        message = self._contract.messages[self._index[name] - 1]
        tensor = message.pack(tensor.detach()).contiguous()
        self.sent_bytes += tensor.nbytes
        assert (tensor.dtype, tensor.shape[1:]) == (message.torch_dtype, message.shape), (
            f"{name} is {tensor.dtype} {list(tensor.shape[1:])}, but the contract says {message}"
        )
        if message.announced:
            assert self._announced is not None, "what is announced comes first"
            self._announced[1][name] = tensor
        else:
            self._put((self._index[name], tensor))

    def finish(self) -> None:
        assert not self._expected, f"not sent: {list(self._expected)}"
        if self._announced is not None:  # a batch without tensors of their own
            self._put(None)

    def drain(self) -> None:
        with self._changed:
            self._wait_for(lambda: self._unfinished == 0, "nothing taken by")

    def close(self) -> None:
        super().close()
        self._queue.put(None)

    def _put(self, tensor: tuple[int, Tensor] | None) -> None:
        """Each job wakes the edge's thread, so a batch without delta is one."""
        announced, self._announced = self._announced, None
        last = not self._expected
        self._queue.put(_Job(announced, tensor, self._channel.mark(), last))

    def _post(self) -> None:
        underway: list[_Leaving] = []
        number = -1
        while (job := self._queue.get()) is not None:
            if job.announced is not None:
                header, tensors = job.announced
                number = header.number
                on_host = {n: self._channel.to_host(t, job.ready) for n, t in tensors.items()}
                frame = self._layout.write(header, on_host)
                action = self._action("send", "header", number, frame.nbytes)
                underway.append((self._channel.post_frame(frame), frame, action))
            if job.tensor is not None:
                index, tensor = job.tensor
                name = self._contract.messages[index - 1].name
                action = self._action("send", name, number, tensor.nbytes)
                underway.append((self._channel.post_send(tensor, job.ready, index), tensor, action))
                del tensor  # the list alone keeps it
            if job.last:
                self._posted.put(underway)
                underway = []
            del job

    def _complete(self) -> None:
        while True:
            underway = self._posted.get()
            while underway:
                wait, _, action = underway[0]
                wait()
                action.stop()
                underway.pop(0)  # only now may the tensor's memory be used again
            with self._changed:
                self._unfinished -= 1
                self._changed.notify_all()


_Leaving = tuple[WaitSent, Tensor, Action]
"""A transfer under way, and the tensor that must not change until it is through."""


_Announced = tuple[Header, dict[str, Tensor]]
"""What goes into a frame."""


@dataclass(frozen=True)
class _Job:
    """What a sender's thread starts next."""

    announced: _Announced | None
    """A frame to send first; None where it is already under way."""
    tensor: tuple[int, Tensor] | None
    """A tensor and its place in the contract, from 1."""
    ready: Token
    last: bool
    """Whether the batch is complete with this."""


class RemoteReceiver(Endpoint):
    """The receiving end; arguments as for :class:`RemoteSender`, and ``deal``: the batches that come here.

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
        self._free: deque[_Slot] = deque(
            _Slot(contract, channel.device, channel.mark()) for _ in range(ring_slots(window))
        )
        self._posted: queue.SimpleQueue[tuple[ArrivingBatch, list[_Arriving]] | None]
        self._posted = queue.SimpleQueue()
        self._start_threads()

    def receive(self) -> ArrivingBatch:
        self._batch = due = self._deal.after(self._last_number)
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

    def wait_for_tensor(self, batch: ArrivingBatch, name: str) -> Message:
        """Wait until one tensor of a batch is there; what the contract says of it."""
        with self._changed:
            self._wait_for(lambda: name in batch.arrived, "nothing from")
        self._channel.join(batch.arrived[name])
        return self._messages[name]

    def give_back(self, slot: _Slot) -> None:
        """A slot may be filled again once the device is past what it was asked so far."""
        slot.free = self._channel.mark()
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def _post(self) -> None:
        while True:
            frame = self._channel.receive_frame(self._layout.length)
            header = self._layout.read_header(frame)
            messages = self._contract.of_kind(header.kind)
            with self._changed:
                while not self._free and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                slot = self._free.popleft()
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


class _Slot:
    """Memory for one batch."""

    def __init__(self, contract: Contract, device: torch.device, free: Token) -> None:
        self.free = free
        self.buffers = {
            m.name: torch.empty((contract.max_rows, *m.shape), dtype=m.torch_dtype, device=device)
            for m in contract.messages
        }


class ArrivingBatch:
    """A batch in a slot of the ring."""

    def __init__(self, receiver: RemoteReceiver, header: Header, slot: _Slot) -> None:
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
