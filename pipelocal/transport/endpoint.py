"""Base of both ends of an edge between ranks: threads, their failures, and interruptible waits.

::

    sending rank                                       receiving rank
    compute thread          edge threads               edge threads            compute thread
    begin, send, finish ->  [queue, <= window]  ====>  [ring, >= 2 slots]   -> receive, get, release
                             post | wait                post | wait

Transfers run on separate threads, so that they proceed while the model computes, and so that the compute
thread only waits on conditions that a failure elsewhere can interrupt. One thread starts the transfers of a
batch while another still waits for those of the previous batch: over a high-latency link a batch takes
several trips (frame, the receiver's readiness, tensors), and those of different batches must overlap.
"""

from __future__ import annotations

import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from pipelocal.errors import STALLED, StageError
from pipelocal.system.patience import Patience
from pipelocal.telemetry.actions import Action, Recorder
from pipelocal.transport.channels import Channel
from pipelocal.transport.contract import Contract
from pipelocal.transport.edge import Check
from pipelocal.transport.frame import FrameLayout

POLL_S = 0.1
"""Seconds between checks whether a wait has become pointless."""

Waits = Callable[[bool], None]
"""Called with True when this rank starts to wait for the other end, and with False when it stops."""


def tell_nobody(_waiting: bool) -> None:
    """A :data:`Waits` that does nothing."""


class Endpoint(ABC):
    """Base of both ends: two threads, their failures, and interruptible waits."""

    def __init__(
        self,
        contract: Contract,
        channel: Channel,
        *,
        own: int,
        peer: str,
        check: Check,
        waits: Waits,
        timeout_s: float,
        recorder: Recorder | None,
    ) -> None:
        self.waited_s = 0.0
        self._recorder = recorder or Recorder()
        self._contract = contract
        self._layout = FrameLayout(contract)
        self._channel = channel
        self._own = own
        self._peer = peer
        self._check = check
        self._waits = waits
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._failure: str | None = None
        self._batch: int | None = None
        self._closed = False

    def trouble(self) -> StageError | None:
        if self._failure is None:
            return None
        return StageError(
            f"lost the connection to {self._peer} ({self._failure})",
            stage=self._own,
            batch=self._batch,
            symptom=True,
        )

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _start_threads(self) -> None:
        edge = f"edge {self._contract.source}->{self._contract.target}"
        for work in (self._post, self._complete):
            threading.Thread(target=self._guarded, args=[work], name=edge, daemon=True).start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            if self._channel.device.type == "cuda":
                torch.cuda.set_device(self._channel.device)
            work()
        except Exception as error:
            # If the process is exiting, nobody reads this.
            with self._changed:
                self._failure = first_sentence(error)
                self._changed.notify_all()

    def _action(self, name: str, message: str, batch: int, size: int) -> Action:
        edge = f"{self._contract.source} -> {self._contract.target}"
        return self._recorder.begin(f"{edge} {message}", name, batch, size)

    @abstractmethod
    def _post(self) -> None:
        """Start transfers until the stream ends; runs on its own thread."""

    @abstractmethod
    def _complete(self) -> None:
        """Wait for the started transfers, in order; runs on its own thread."""

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait, with the lock held, until ``condition``; raise if that can no longer happen."""
        if condition():
            return
        started, patience = time.monotonic(), Patience(self._timeout_s)
        self._waits(True)
        while not condition():
            if (trouble := self.trouble()) is not None:
                raise trouble
            self._check()
            if patience.over():
                raise StageError(
                    f"{what} {self._peer} for {self._timeout_s:g} s: {STALLED}",
                    stage=self._own,
                    batch=self._batch,
                    symptom=True,
                )
            self._changed.wait(POLL_S)
        self._waits(False)
        self.waited_s += time.monotonic() - started


def first_sentence(error: Exception) -> str:
    """Return a library's error message without its source location and advice."""
    text = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip())
    return re.split(r"\.\s|\n", text)[0] or type(error).__name__
