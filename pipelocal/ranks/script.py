"""Ends a user's script cleanly on one of several ranks."""

from __future__ import annotations

import os
import signal
import sys
from types import TracebackType

from pipelocal.errors import PipelocalError, Terminated
from pipelocal.ranks.launcher import tell_launcher
from pipelocal.system.signals import end_on_signals
from pipelocal.system.streams import flush_streams, say


def end_plainly(rank: int) -> None:
    """From now on, let an uncaught exception end this process at once.

    Transfers with a lost rank cannot be cancelled, and would keep the process alive. pipelocal's own errors
    are printed as one line; PIPELOCAL_TRACEBACK=1 shows where it came from.

    Args:
        rank: rank of this process, for the line.
    """

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        # Torchrun's signal to end may come now, and must not end these lines.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        # torch.distributed wraps this hook with its own, which buffers the output to print it later;
        # the process ends before that.
        sys.stderr = sys.__stderr__
        text = " ".join(str(error).split())
        ended = isinstance(error, Terminated)
        ours = isinstance(error, PipelocalError) and not os.environ.get("PIPELOCAL_TRACEBACK")
        if ended or ours:
            line = f"pipelocal (rank {rank}): {'stopped' if ended else 'error'}: {text}"
            say(line)
        else:
            line = f"rank {rank}: {kind.__name__}: {text}"
            sys.__excepthook__(kind, error, traceback)
        tell_launcher(line, first=not ended)
        flush_streams()
        os._exit(1)

    sys.excepthook = hook
    # Torchrun ends all ranks when one has ended, and this one is to say the reason, too.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        end_on_signals()
