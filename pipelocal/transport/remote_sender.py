"""The sending end of an edge between ranks; see :mod:`pipelocal.transport.endpoint` for both."""

from __future__ import annotations

import queue
from collections import deque
from dataclasses import dataclass

from torch import Tensor

from pipelocal.telemetry.actions import Action, Recorder
from pipelocal.transport.channels import Channel, Token, WaitSent
from pipelocal.transport.contract import Contract
from pipelocal.transport.edge import Check
from pipelocal.transport.endpoint import Endpoint, Waits, tell_nobody
from pipelocal.transport.header import Header
from pipelocal.transport.window import Window


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
        self._window = Window(window)
        self._expected: deque[str] = deque()
        self._announced: _Announced | None = None
        self._index = {m.name: i + 1 for i, m in enumerate(contract.messages)}
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._posted: queue.SimpleQueue[list[_Leaving]] = queue.SimpleQueue()
        self._start_threads()

    def begin(self, header: Header) -> None:
        self._batch = header.number
        with self._changed:
            self._wait_for(self._window.has_room, "no room towards")
            self._window.begin_batch()
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
            self._wait_for(self._window.is_empty, "nothing taken by")

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
                self._window.end_batch()
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
