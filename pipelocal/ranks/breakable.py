"""Makes calls that block inside a library interruptible."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from pipelocal.system.patience import Patience

T = TypeVar("T")

POLL_S = 0.1
BREAKABLE = "breakable"
"""Name of the threads of such calls."""


def breakable(call: Callable[[], T], *, check: Callable[[], None], timeout_s: float) -> T:
    """Run ``call`` on its own thread, which is abandoned if the wait is broken off.

    Signals reach the calling thread, which never waits for long.

    Args:
        call: the function to run. The current CUDA device is not passed on to its thread.
        check: raises when the wait has become pointless.
        timeout_s: timeout in seconds.

    Raises:
        TimeoutError: ``call`` did not end in time.
    """
    result: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

    def run() -> None:
        try:
            value = call()
        except BaseException as error:
            failure = error

            def fail() -> T:
                raise failure

            result.put(fail)
        else:
            result.put(lambda: value)

    threading.Thread(target=run, name=BREAKABLE, daemon=True).start()
    patience = Patience(timeout_s)
    while not patience.over():
        check()
        try:
            outcome = result.get(timeout=POLL_S)
        except queue.Empty:
            continue
        return outcome()
    raise TimeoutError
