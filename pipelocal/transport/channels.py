"""Channels that move tensors between ranks: gloo, gloo through pinned memory, or NCCL.

A channel serves one directed edge. All three have the same interface, so that the code that queues and limits
transfers (:mod:`pipelocal.transport.endpoint`) is written once. ``mark`` and ``prepare_send`` are called on
the compute thread, everything else on threads of the edge, in the stream's order.

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
Send = Callable[[], None]
"""Sends a tensor, and waits until it has left, so that its memory may be used again."""
WaitReceived = Callable[[int], None]
"""Waits until so many rows have arrived; any work of the device submitted later finds them."""

RIDING_BYTES = 256 * 1024
"""Most bytes of the tensors that are copied into a frame: a copy of more would cost more than a message."""

SENT_AS_THEY_ARE = frozenset(
    getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8")
)
"""Dtypes that gloo and NCCL both know; others, such as bool, travel as bytes."""

FRAME_TAG, FAREWELL_TAG, FIRST_TENSOR_TAG = range(3)
"""Tags over gloo: tensors have theirs by their position in the contract. NCCL has none, and uses order."""


class Channel(Protocol):
    """One direction between two ranks."""

    device: torch.device
    riding_bytes: int
    """Most bytes that ride in a frame, beside what is announced."""

    def mark(self) -> Token:
        """Return a token for the work that the calling thread has submitted to the device so far."""

    def host_memory(self, size: int) -> Tensor:
        """Return memory for a frame, uint8 ``[size]`` on the CPU."""

    def from_host(self, tensor: Tensor, buffer: Tensor, free: Token) -> None:
        """Fill a buffer from the CPU, once the device is past ``free``; waits for that."""

    def prepare_send(self, tensor: Tensor, ready: Token, tag: int) -> Send:
        """Return what sends a contiguous tensor, or a frame, once the device is past ``ready``."""

    def post_receive(self, buffer: Tensor, free: Token, tag: int) -> WaitReceived:
        """Fill a contiguous buffer, or a frame, with the next message of this tag, which may be shorter, once
        the device is past ``free``."""


class GlooChannel:
    """CPU tensors over gloo.

    Args:
        peer: global rank of the other end.
        group: a gloo group of the two ranks, used by no other edge.
    """

    riding_bytes = RIDING_BYTES

    def __init__(self, peer: int, group: dist.ProcessGroup) -> None:
        self.device = torch.device("cpu")
        self._group = group
        self._peer = dist.get_group_rank(group, peer)

    def mark(self) -> Token:
        return None

    def host_memory(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def from_host(self, tensor: Tensor, buffer: Tensor, free: Token) -> None:  # noqa: ARG002
        buffer.copy_(tensor)

    def prepare_send(self, tensor: Tensor, ready: Token, tag: int) -> Send:  # noqa: ARG002
        # By the group's own method: dist.isend and dist.irecv take twice the time of what they call.
        return lambda: _finish(self._group.send([_sendable(tensor)], self._peer, tag))

    def post_receive(self, buffer: Tensor, free: Token, tag: int) -> WaitReceived:  # noqa: ARG002
        work = self._group.recv([_sendable(buffer)], self._peer, tag)
        return lambda _rows: _finish(work)


class PinnedChannel(GlooChannel):
    """CUDA tensors over gloo, staged through pinned host memory on a stream of its own."""

    def __init__(self, peer: int, group: dist.ProcessGroup, device: torch.device) -> None:
        super().__init__(peer, group)
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def mark(self) -> Token:
        return _record_event(torch.cuda.current_stream(self.device))

    def from_host(self, tensor: Tensor, buffer: Tensor, free: Token) -> None:
        with torch.cuda.stream(self._stream):
            _join(self._stream, free)
            buffer.copy_(tensor, non_blocking=True)
            copied = _record_event(self._stream)
        copied.synchronize()  # before the tensor's memory is reused

    def prepare_send(self, tensor: Tensor, ready: Token, tag: int) -> Send:
        staged = tensor
        if tensor.device.type == "cuda":
            with torch.cuda.stream(self._stream):
                _join(self._stream, ready)
                staged = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                staged.copy_(tensor, non_blocking=True)
                ready = _record_event(self._stream)

        def finish() -> None:
            if ready is not None:
                ready.synchronize()
            super(PinnedChannel, self).prepare_send(staged, None, tag)()

        return finish

    def post_receive(self, buffer: Tensor, free: Token, tag: int) -> WaitReceived:
        if buffer.device.type == "cpu":
            return super().post_receive(buffer, None, tag)
        staged = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True)
        wait = super().post_receive(staged, None, tag)

        def finish(rows: int) -> None:
            wait(rows)
            self.from_host(staged[:rows], buffer[:rows], free)

        return finish


class NcclChannel(PinnedChannel):
    """CUDA tensors over NCCL, on a stream of its own; frames use gloo on the host.

    NCCL knows no tags, and both ends must name the same length, so transfers are started in their order, once
    the header of their batch is known.

    Args:
        peer: global rank of the other end.
        group: a gloo group of the two ranks, for frames.
        device: the CUDA device of this rank.
        nccl_group: an NCCL group of the two ranks, used by no other edge.
    """

    riding_bytes = 0

    def __init__(
        self,
        peer: int,
        group: dist.ProcessGroup,
        device: torch.device,
        nccl_group: dist.ProcessGroup,
    ) -> None:
        super().__init__(peer, group, device)
        self._rank = peer
        self._nccl_group = nccl_group

    def prepare_send(self, tensor: Tensor, ready: Token, tag: int) -> Send:
        if tensor.device.type == "cpu":
            return super().prepare_send(tensor, ready, tag)

        def finish() -> None:
            with torch.cuda.stream(self._stream):
                _join(self._stream, ready)
                # Its wait blocks the stream, and not the host.
                _finish(dist.isend(_sendable(tensor), self._rank, group=self._nccl_group))
                sent = _record_event(self._stream)
            sent.synchronize()

        return finish

    def post_receive(self, buffer: Tensor, free: Token, tag: int) -> WaitReceived:
        if buffer.device.type == "cpu":
            return super().post_receive(buffer, free, tag)

        def finish(rows: int) -> None:
            with torch.cuda.stream(self._stream):
                _join(self._stream, free)
                _finish(dist.irecv(_sendable(buffer[:rows]), self._rank, group=self._nccl_group))
                arrived = _record_event(self._stream)
            arrived.synchronize()  # on this edge's thread: other threads wait interruptibly

        return finish


def _sendable(tensor: Tensor) -> Tensor:
    """Return a view of a contiguous tensor in a dtype that every back end moves."""
    if tensor.dtype in SENT_AS_THEY_ARE:
        return tensor
    return tensor.flatten().view(torch.uint8)


def _join(stream: torch.cuda.Stream, token: Token) -> None:
    """Make a stream wait for a token; the host does not wait."""
    if token is not None:
        stream.wait_event(token)


def _record_event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    # Waiting threads sleep: every end of an edge has a thread that waits.
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


def _finish(work: dist.Work | None) -> None:
    assert work is not None
    work.wait()
