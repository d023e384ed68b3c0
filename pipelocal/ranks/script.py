"""How a user's own script ends on one of several ranks."""

from __future__ import annotations

import os
import signal
import sys
from types import TracebackType

from pipelocal.errors import PipelocalError, Terminated
from pipelocal.system.signals import end_on_signals
from pipelocal.system.streams import flush_streams, say


def end_plainly(rank: int) -> None:
    """From now on have an exception that nobody catches end this process at once.

    Transfers with a lost rank cannot be called back, and would keep the process alive. What pipelocal has to
    say is one line; PIPELOCAL_TRACEBACK=1 shows where it came from.

    Args:
        rank: of this process, for the line.
    """

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        # torch.distributed has put a hook of its own around this one, which collects what is written to
        # show it behind; that never comes.
        sys.stderr = sys.__stderr__
        text = " ".join(str(error).split())
        if isinstance(error, Terminated):
            say(f"pipelocal (rank {rank}): stopped: {text}")
        elif isinstance(error, PipelocalError) and not os.environ.get("PIPELOCAL_TRACEBACK"):
            say(f"pipelocal (rank {rank}): error: {text}")
        else:
            sys.__excepthook__(kind, error, traceback)
        flush_streams()
        os._exit(1)

    sys.excepthook = hook
    # Torchrun ends all ranks when one has ended, and this one is to say the reason, too.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        end_on_signals()
