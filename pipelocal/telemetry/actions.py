"""Records what one rank does and when: always the last few actions, and all of them for a trace.

An action belongs to a lane: that of a stage (``stage 2``: receive, forward, send, head, ...), or that of one
tensor on an edge (``1 -> 2 x``), which is sent while the stage computes.
"""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from torch.autograd import _profiler_enabled
from torch.profiler import record_function

from pipelocal.system.streams import say

LAST = 8
"""Number of actions per lane that are kept in case the run stalls."""

TRACED = 200_000
"""Most actions of a rank in a trace, to bound memory; later ones are left out."""


class Action:
    """One action, as a context manager around it; under PyTorch's profiler a range of that thread.

    ``started`` and ``stopped`` are seconds of ``time.perf_counter``; ``stopped`` is None until it ends.
    """

    __slots__ = ("_recorder", "batch", "bytes", "lane", "name", "range", "started", "stopped")

    def __init__(self, recorder: Recorder, lane: str, name: str, batch: int, size: int) -> None:
        self.lane = lane
        self.name = name
        self.batch = batch
        self.bytes = size
        self.started = time.perf_counter()
        self.stopped: float | None = None
        self.range: record_function | None = None
        self._recorder = recorder

    def __enter__(self) -> Action:
        if _profiler_enabled():
            self.range = record_function(f"{self.lane} {self.name}")
            self.range.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.range is not None:
            self.range.__exit__(kind, error, trace)
            self.range = None
        if kind is None:
            self.stop()

    def stop(self) -> None:
        """End the action."""
        self.stopped = time.perf_counter()
        self._recorder.done(self)


class Recorder:
    """Records the actions of one rank; it is thread-safe.

    Args:
        trace: whether to keep all actions for a trace.
        print_transfers: whether to print a line to standard error for each tensor that crosses an edge.
    """

    def __init__(self, *, trace: bool = False, print_transfers: bool = False) -> None:
        self.left_out = 0
        """Number of actions beyond the limit of a trace."""
        self._last: dict[str, deque[Action]] = {}
        self._traced: list[Action] | None = [] if trace else None
        self._print_transfers = print_transfers

    def begin(self, lane: str, name: str, batch: int, size: int = 0) -> Action:
        """Start an action now; it ends with its ``with`` block or its ``stop``.

        Args:
            lane: the lane in which it is shown.
            name: name of the action.
            batch: number of the batch along the stream, from 0; those of evaluations count too.
            size: bytes transferred.
        """
        action = Action(self, lane, name, batch, size)
        if (last := self._last.get(lane)) is None:
            last = self._last.setdefault(lane, deque(maxlen=LAST))
        last.append(action)
        return action

    def done(self, action: Action) -> None:
        """Record an action that has ended."""
        if self._traced is not None:
            if len(self._traced) < TRACED:
                self._traced.append(action)
            else:
                self.left_out += 1
        if self._print_transfers and action.bytes and action.stopped is not None:
            edge, _, message = action.lane.rpartition(" ")
            took = 1000 * (action.stopped - action.started)
            size = action.bytes / 1e6
            say(
                f"{action.name} {edge} | batch {action.batch + 1} | {message} | "
                f"{size:.3g} MB | {took:.1f} ms"
            )

    def traced(self) -> list[Action]:
        """Return all finished actions, in the order in which they ended; empty without ``trace``."""
        return list(self._traced or ())

    def last_actions(self) -> list[str]:
        """Return a readable line for each lane: what it did last and what it is doing."""
        now = time.perf_counter()
        return [
            f"{lane}: " + ", ".join(_describe(action, now) for action in list(actions))
            for lane, actions in self._last.copy().items()
        ]


def _describe(action: Action, now: float) -> str:
    what = f"{action.name} (batch {action.batch + 1})"
    if action.stopped is None:
        return f"{what} for {now - action.started:.1f} s and not done"
    return f"{what} done {now - action.stopped:.1f} s ago"
