"""What one rank does, and when: the last few actions always, all of them for a trace.

An action lies on a lane: a stage's own (``stage 2``: receive, forward, send, head, ...), or that of one
tensor on an edge (``1 -> 2 x``), which moves while the stage computes.
"""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from pipelocal.system.streams import say

LAST = 8
"""Actions of a lane that are kept for the case that the run stalls."""

TRACED = 200_000
"""Most actions of a rank in a trace, the first ones; bounds its memory."""


class Action:
    """One thing that is done, as a context manager around it.

    ``started`` and ``stopped`` are seconds of ``time.perf_counter``; ``stopped`` is None meanwhile.
    """

    __slots__ = ("_recorder", "batch", "bytes", "lane", "name", "started", "stopped")

    def __init__(self, recorder: Recorder, lane: str, name: str, batch: int, size: int) -> None:
        self.lane = lane
        self.name = name
        self.batch = batch
        self.bytes = size
        self.started = time.perf_counter()
        self.stopped: float | None = None
        self._recorder = recorder

    def __enter__(self) -> Action:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.stop()

    def stop(self) -> None:
        """It is done."""
        self.stopped = time.perf_counter()
        self._recorder.done(self)


class Recorder:
    """The actions of one rank. Its threads may use it at once.

    Args:
        trace: keep them for a trace.
        print_transfers: print a line for each tensor that crossed an edge, on standard error.
    """

    def __init__(self, *, trace: bool = False, print_transfers: bool = False) -> None:
        self.left_out = 0
        """Actions that a trace has no room for."""
        self._last: dict[str, deque[Action]] = {}
        self._traced: list[Action] | None = [] if trace else None
        self._print_transfers = print_transfers

    def begin(self, lane: str, name: str, batch: int, size: int = 0) -> Action:
        """An action begins now; it ends with its ``with`` block or its ``stop``.

        Args:
            lane: where it is shown.
            name: what is done.
            batch: number of the batch.
            size: bytes that move.
        """
        action = Action(self, lane, name, batch, size)
        if (last := self._last.get(lane)) is None:
            last = self._last.setdefault(lane, deque(maxlen=LAST))
        last.append(action)
        return action

    def done(self, action: Action) -> None:
        """Called by an action that ended."""
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
                f"{action.name} {edge} | batch {action.batch} | {message} | "
                f"{size:.3g} MB | {took:.1f} ms"
            )

    def traced(self) -> list[Action]:
        """All finished actions, in the order in which they ended; empty without ``trace``."""
        return list(self._traced or ())

    def last_actions(self) -> list[str]:
        """A line for each lane, for people: what it did last and what it is at."""
        now = time.perf_counter()
        return [
            f"{lane}: " + ", ".join(_describe(action, now) for action in list(actions))
            for lane, actions in list(self._last.items())
        ]


def _describe(action: Action, now: float) -> str:
    what = f"{action.name} (batch {action.batch})"
    if action.stopped is None:
        return f"{what} for {now - action.started:.1f} s and not done"
    return f"{what} done {now - action.stopped:.1f} s ago"
