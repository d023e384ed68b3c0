"""Base of both ends of an edge between ranks: their threads, failures, and interruptible waits.

::

    sending rank                                         receiving rank
    compute thread        edge thread                    edge threads          compute thread
    begin  <- free frames <- |                           wait -> arriving ->   receive, get
    send, finish -> leaving -> send ======= frame =====>
                                                         post <- given back <- release

Transfers run on threads of the edge. A wait inside gloo or NCCL cannot be interrupted; and while a thread
that starts a transfer is preempted in the middle of it, gloo's own thread spins, so that must be one that
mostly sleeps, and not the one that computes. The compute thread waits for queues alone, and a failure
elsewhere ends its wait. A receive is posted as soon as there is memory for it, so a message takes one trip.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from pipelocal.errors import STALLED, StageError
from pipelocal.system.patience import Patience
from pipelocal.telemetry.actions import Action, Recorder
from pipelocal.transport.channels import Channel
from pipelocal.transport.contract import Contract
from pipelocal.transport.edge import Check
from pipelocal.transport.frame import FrameLayout

T = TypeVar("T")

POLL_S = 0.1
"""Seconds between checks whether a wait has become pointless."""

Waits = Callable[[bool], None]
"""Called with True when this rank starts to wait for the other end, and with False when it stops."""


def tell_nobody(_waiting: bool) -> None:
    """A :data:`Waits` that does nothing."""


class Endpoint:
    """Base of both ends: their threads, failures, and interruptible waits.

    Args:
        contract: what the edge carries.
        channel: how.
        own: number of this end's stage, for error messages.
        peer: name of the other end, for error messages.
        check: raises when another rank has failed.
        timeout_s: longest wait for the other end, in seconds.
        waits: told when this rank begins (True) and ends to wait for the other end.
        recorder: takes the transfers, and when they were; None for nobody.
    """

    def __init__(
        self,
        contract: Contract,
        channel: Channel,
        *,
        own: int,
        peer: str,
        check: Check,
        timeout_s: float,
        waits: Waits = tell_nobody,
        recorder: Recorder | None = None,
    ) -> None:
        self.waited_s = 0.0
        self._recorder = recorder or Recorder()
        self._contract = contract
        self._layout = FrameLayout(contract, channel.riding_bytes)
        self._channel = channel
        self._own = own
        self._peer = peer
        self._check = check
        self._waits = waits
        self._timeout_s = timeout_s
        self._failure: str | None = None
        self._edge = f"{contract.source} -> {contract.target}"

    def trouble(self) -> StageError | None:
        if self._failure is None:
            return None
        return StageError(
            f"lost the connection to {self._peer} ({self._failure})",
            stage=self._own,
            symptom=True,
        )

    def _start(self, work: Callable[[], None]) -> None:
        """Run a part of this end on a thread of its own."""
        name = f"edge {self._contract.source}->{self._contract.target}"
        threading.Thread(target=self._guarded, args=[work], name=name, daemon=True).start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            if self._channel.device.type == "cuda":
                torch.cuda.set_device(self._channel.device)
            work()
        except Exception as error:
            self._failure = first_sentence(error)  # if the process is exiting, nobody reads this

    def _action(self, name: str, message: str, batch: int, size: int) -> Action:
        return self._recorder.begin(f"{self._edge} {message}", name, batch, size)

    def _next_of(self, items: queue.SimpleQueue[T], what: str) -> T:
        """Return the next item of a queue; wait for it, and raise if it can no longer come."""
        try:
            return items.get_nowait()
        except queue.Empty:
            pass
        started, patience = time.monotonic(), Patience(self._timeout_s)
        self._waits(True)
        while True:
            if (trouble := self.trouble()) is not None:
                raise trouble
            self._check()
            if patience.over():
                raise StageError(
                    f"{what} {self._peer} for {self._timeout_s:g} s: {STALLED}",
                    stage=self._own,
                    symptom=True,
                )
            try:
                item = items.get(timeout=POLL_S)
            except queue.Empty:
                continue
            self._waits(False)
            self.waited_s += time.monotonic() - started
            return item


def first_sentence(error: Exception) -> str:
    """Return a library's error message without its source location and advice."""
    text = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip())
    return re.split(r"\.\s|\n", text)[0] or type(error).__name__
