"""The sending end of an edge between ranks; see :mod:`pipelocal.transport.endpoint` for both."""

from __future__ import annotations

import queue
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelocal.telemetry.actions import Action
from pipelocal.transport.channels import (
    FAREWELL_TAG,
    FIRST_TENSOR_TAG,
    FRAME_TAG,
    Channel,
    Send,
)
from pipelocal.transport.contract import Contract, Message
from pipelocal.transport.endpoint import Endpoint
from pipelocal.transport.frame import Frame
from pipelocal.transport.header import Header, Kind
from pipelocal.transport.window import Window, frames


class RemoteSender(Endpoint):
    """The sending end.

    It has as many frames as the window has batches: a batch that has left brings its frame back, and where
    there is no frame there is no room.

    Args:
        contract: what the edge carries.
        channel: how.
        window: most batches that are sent but not yet taken by the other end; ``auto`` as at both ends.
        rest: further arguments of :class:`~pipelocal.transport.endpoint.Endpoint`.
    """

    def __init__(
        self, contract: Contract, channel: Channel, *, window: Window, **rest: Any
    ) -> None:
        super().__init__(contract, channel, own=contract.source, **rest)
        self.sent_bytes = 0
        self._kinds = {kind: contract.of_kind(kind) for kind in Kind}
        self._tags = {m.name: tag for tag, m in enumerate(contract.messages, FIRST_TENSOR_TAG)}
        self._frames = frames(window)
        self._free: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        for _ in range(self._frames):
            self._free.put(Frame(self._layout, channel.host_memory(self._layout.size)))
        self._header: Header
        self._frame: Frame
        self._places: dict[str, Tensor]
        self._data: Tensor
        self._expected: deque[Message] = deque()
        self._riding: list[Action] = []
        self._leaving: queue.SimpleQueue[_Leaving | None] = queue.SimpleQueue()
        self._start(self._send_all)

    def begin(self, header: Header) -> None:
        waited = self.waited_s
        self._frame = self._next_of(self._free, "no room towards")
        self._frame.write(header, waited_s=self.waited_s - waited)
        self._places, self._data = self._frame.load(header.kind, header.rows)
        self._header = header
        self._expected.extend(self._kinds[header.kind])
        self._leave_if_full()

    def send(self, name: str, tensor: Tensor) -> None:
        message = self._expected.popleft() if self._expected else None
        wanted = None if message is None else message.name
        assert wanted == name, f"the contract wants {wanted} next, not {name}"
        assert message is not None
        tensor, rows = message.pack(tensor.detach()), self._header.rows
        assert (tensor.dtype, tensor.shape) == (message.torch_dtype, (rows, *message.shape)), (
            f"{name} is {tensor.dtype} {list(tensor.shape)}, but the contract says {message} of {rows} rows"
        )
        size = rows * message.bytes_per_row
        self.sent_bytes += size
        if name not in self._places:
            actions, last = [self._sending(name, size)], not self._expected
            self._leave(tensor.contiguous(), self._tags[name], actions, last=last)
            return
        if not message.announced:
            self._riding.append(self._sending(name, size))
        self._places[name].copy_(tensor, non_blocking=True)
        self._leave_if_full()

    def finish(self) -> None:
        assert not self._expected, f"not sent: {[message.name for message in self._expected]}"

    def drain(self) -> None:
        taken = [self._next_of(self._free, "nothing taken by") for _ in range(self._frames)]
        for frame in taken:
            self._free.put(frame)

    def close(self) -> None:
        self._leaving.put(None)

    def _leave_if_full(self) -> None:
        """Send the frame if nothing that rides in it is missing."""
        if self._expected and self._expected[0].name in self._places:
            return
        riding, self._riding = self._riding, []
        rest = len(self._data) - sum(action.bytes for action in riding)
        actions = [*riding, self._sending("header", rest)]
        ends = self._header.kind == Kind.END
        last = not self._expected and not ends
        self._leave(self._data, FRAME_TAG, actions, last=last)
        if ends:
            # The other end makes room for it when the end has come: then nothing is under way either way, and
            # neither end harms the other by closing the connection.
            self._leave(torch.empty(1, dtype=torch.uint8), FAREWELL_TAG, [], last=True)

    def _sending(self, name: str, size: int) -> Action:
        return self._action("send", name, self._header.number, size)

    def _leave(self, tensor: Tensor, tag: int, actions: list[Action], *, last: bool) -> None:
        ready = self._channel.mark() if self._kinds[self._header.kind] else None
        send = self._channel.prepare_send(tensor, ready, tag)
        self._leaving.put(_Leaving(send, actions, self._frame if last else None))

    def _send_all(self) -> None:
        while (leaving := self._leaving.get()) is not None:
            leaving.send()
            for action in leaving.actions:
                action.stop()
            if leaving.frame is not None:
                self._free.put(leaving.frame)
            del leaving  # only now may the tensor's memory be used again


@dataclass(frozen=True, slots=True)
class _Leaving:
    """A message to send."""

    send: Send
    """Holds the tensor, which must not change until it has left."""
    actions: list[Action]
    frame: Frame | None
    """The batch's frame, if this is its last message."""
