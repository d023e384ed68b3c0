"""Makes calls that block inside a library interruptible."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from pipelocal.system.patience import Patience

T = TypeVar("T")

POLL_S = 0.1
BREAKABLE = "breakable"
"""Name of the threads of such calls."""


class Begun(Generic[T]):
    """A call that runs on another thread, where it is abandoned if the wait for it is broken off.

    Args:
        call: the function to run. The current CUDA device is not passed on to its thread.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._result: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

    def run(self) -> None:
        """Run the call, on the other thread."""
        try:
            value = self._call()
        except BaseException as error:
            failure = error

            def fail() -> T:
                raise failure

            self._result.put(fail)
        else:
            self._result.put(lambda: value)

    def wait(self, *, check: Callable[[], None], timeout_s: float) -> T:
        """Return what the call returns, or raise what it raises; call it once.

        Signals reach the calling thread, which never waits for long.

        Args:
            check: raises when the wait has become pointless.
            timeout_s: timeout in seconds.

        Raises:
            TimeoutError: the call did not end in time.
        """
        patience = Patience(timeout_s)
        while not patience.over():
            check()
            try:
                outcome = self._result.get(timeout=POLL_S)
            except queue.Empty:
                continue
            return outcome()
        raise TimeoutError


def breakable(call: Callable[[], T], *, check: Callable[[], None], timeout_s: float) -> T:
    """Run a call on a thread of its own, and wait for it; see :class:`Begun`."""
    begun = Begun(call)
    threading.Thread(target=begun.run, name=BREAKABLE, daemon=True).start()
    return begun.wait(check=check, timeout_s=timeout_s)


class InTurn:
    """A thread that runs calls one after the other, in the order in which they are begun."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._started = False

    def begin(self, call: Callable[[], T]) -> Begun[T]:
        """Begin a call once those before it are over."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="in turn", daemon=True).start()
        begun = Begun(call)
        self._calls.put(begun.run)
        return begun

    def _run(self) -> None:
        while True:
            self._calls.get()()
