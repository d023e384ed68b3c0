"""Channels that move tensors between ranks: gloo, gloo through pinned memory, or NCCL.

A channel serves one directed edge. All three have the same interface, so that the code that queues and limits
transfers (:mod:`pipelocal.transport.endpoint`) is written once:

- ``mark()`` and ``join(token)`` are called on the compute thread. A token stands for all work
  submitted to the device so far; on the CPU it is None, because nothing is deferred there.
- ``post_send`` and ``post_receive`` are called on the edge's own thread, start a transfer and return
  a function that waits for it.

========== ============== ============ =============================================================
channel       tensors on     frames       remark
========== ============== ============ =============================================================
GlooChannel   CPU            gloo         bytes are sent from and received into the tensors directly
PinnedChannel CUDA           gloo         staged through pinned host memory; works where NCCL does not
NcclChannel   CUDA           gloo         device to device, on a stream of its own
========== ============== ============ =============================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

Token = torch.cuda.Event | None
WaitSent = Callable[[], None]
WaitReceived = Callable[[], Token]

SENT_AS_THEY_ARE = frozenset(
    getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8")
)
"""Dtypes that gloo and NCCL both know; others, such as bool, travel as bytes."""

FRAME_TAG = 0
"""Tag of frames; tensors use tags 1, 2, ... by position in the contract (gloo only; NCCL uses order)."""


class Channel(Protocol):
    """One direction between two ranks."""

    device: torch.device

    def mark(self) -> Token:
        """Return a token for the work that the calling thread has submitted to the device so far."""

    def join(self, token: Token) -> None:
        """Make the calling thread's device work wait for ``token``; the host does not wait."""

    def post_frame(self, frame: Tensor) -> WaitSent:
        """Start sending int64 ``[length]`` on the CPU."""

    def receive_frame(self, length: int) -> Tensor:
        """Wait for a frame, int64 ``[length]`` on the CPU."""

    def to_host(self, tensor: Tensor, ready: Token) -> Tensor:
        """Wait until the device is past ``ready``; return a small tensor on the CPU."""

    def from_host(self, tensor: Tensor, buffer: Tensor, free: Token) -> Token:
        """Fill a buffer from the CPU once the device is past ``free``; return a token for its completion."""

    def post_send(self, tensor: Tensor, ready: Token, index: int) -> WaitSent:
        """Start sending a contiguous tensor once the device is past ``ready``."""

    def post_receive(self, buffer: Tensor, free: Token, index: int) -> WaitReceived:
        """Start filling a contiguous buffer once the device is past ``free``."""


class GlooChannel:
    """CPU tensors over gloo.

    Args:
        peer: global rank of the other end.
        group: a gloo group of the two ranks, used by no other edge.
    """

    def __init__(self, peer: int, group: dist.ProcessGroup) -> None:
        self.device = torch.device("cpu")
        self._peer = peer
        self._group = group

    def mark(self) -> Token:
        return None

    def join(self, token: Token) -> None:
        pass

    def post_frame(self, frame: Tensor) -> WaitSent:
        return self.post_send(frame, None, FRAME_TAG)

    def receive_frame(self, length: int) -> Tensor:
        frame = torch.empty(length, dtype=torch.int64)
        self.post_receive(frame, None, FRAME_TAG)()
        return frame

    def to_host(self, tensor: Tensor, ready: Token) -> Tensor:  # noqa: ARG002
        return tensor

    def from_host(self, tensor: Tensor, buffer: Tensor, free: Token) -> Token:  # noqa: ARG002
        buffer.copy_(tensor)
        return None

    def post_send(self, tensor: Tensor, ready: Token, index: int) -> WaitSent:  # noqa: ARG002
        work = dist.isend(_sendable(tensor), self._peer, group=self._group, tag=index)
        assert work is not None
        return lambda: _finish(work)

    def post_receive(self, buffer: Tensor, free: Token, index: int) -> WaitReceived:  # noqa: ARG002
        work = dist.irecv(_sendable(buffer), self._peer, group=self._group, tag=index)
        assert work is not None
        return lambda: _finish(work)


class PinnedChannel(GlooChannel):
    """CUDA tensors over gloo, staged through pinned host memory on a stream of its own."""

    def __init__(self, peer: int, group: dist.ProcessGroup, device: torch.device) -> None:
        super().__init__(peer, group)
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def mark(self) -> Token:
        return _record_event(torch.cuda.current_stream(self.device))

    def join(self, token: Token) -> None:
        if token is not None:
            torch.cuda.current_stream(self.device).wait_event(token)

    def post_send(self, tensor: Tensor, ready: Token, index: int) -> WaitSent:
        if tensor.device.type == "cpu":
            return super().post_send(tensor, None, index)
        return super().post_send(self.to_host(tensor, ready), None, index)

    def to_host(self, tensor: Tensor, ready: Token) -> Tensor:
        with torch.cuda.stream(self._stream):
            self.join(ready)
            staged = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            staged.copy_(tensor, non_blocking=True)
            _record_event(self._stream).synchronize()  # only this edge's thread waits
        return staged

    def from_host(self, tensor: Tensor, buffer: Tensor, free: Token) -> Token:
        with torch.cuda.stream(self._stream):
            self.join(free)
            buffer.copy_(tensor, non_blocking=True)
            copied = _record_event(self._stream)
        copied.synchronize()  # before the tensor's memory is reused
        return copied

    def post_receive(self, buffer: Tensor, free: Token, index: int) -> WaitReceived:
        if buffer.device.type == "cpu":
            return super().post_receive(buffer, None, index)
        staged = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True)
        wait = super().post_receive(staged, None, index)

        def finish() -> Token:
            wait()
            return self.from_host(staged, buffer, free)

        return finish


class NcclChannel(PinnedChannel):
    """CUDA tensors over NCCL, on a stream of its own; frames use gloo on the host.

    Args:
        peer: global rank of the other end.
        group: a gloo group of the two ranks, for frames.
        device: the CUDA device of this rank.
        nccl_group: an NCCL group of the two ranks, used by no other edge.
    """

    def __init__(
        self,
        peer: int,
        group: dist.ProcessGroup,
        device: torch.device,
        nccl_group: dist.ProcessGroup,
    ) -> None:
        super().__init__(peer, group, device)
        self._nccl_group = nccl_group

    def post_send(self, tensor: Tensor, ready: Token, index: int) -> WaitSent:
        if tensor.device.type == "cpu":
            return super().post_send(tensor, ready, index)
        with torch.cuda.stream(self._stream):
            self.join(ready)
            _finish(
                dist.isend(_sendable(tensor), self._peer, group=self._nccl_group)
            )  # blocks the stream
            sent = _record_event(self._stream)
        return sent.synchronize

    def post_receive(self, buffer: Tensor, free: Token, index: int) -> WaitReceived:
        if buffer.device.type == "cpu":
            return super().post_receive(buffer, free, index)
        with torch.cuda.stream(self._stream):
            self.join(free)
            _finish(dist.irecv(_sendable(buffer), self._peer, group=self._nccl_group))
            arrived = _record_event(self._stream)

        def finish() -> Token:
            arrived.synchronize()  # on this edge's thread: other threads wait interruptibly
            return arrived

        return finish


def _sendable(tensor: Tensor) -> Tensor:
    """Return a view of a contiguous tensor in a dtype that every back end moves."""
    if tensor.dtype in SENT_AS_THEY_ARE:
        return tensor
    return tensor.flatten().view(torch.uint8)


def _record_event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    # Waiting threads sleep: every edge has a thread that waits.
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


def _finish(work: dist.Work | None) -> None:
    assert work is not None
    work.wait()
