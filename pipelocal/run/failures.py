"""Handles failures: when any rank cannot continue, every rank ends with the same reason."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.data.loading import is_worker_failure, worker_failed
from pipelocal.errors import STALLED, Interrupted, PipelocalError, StageError, Terminated, UserError
from pipelocal.ranks.control import CAUSE_PATIENCE_S, ControlPlane
from pipelocal.system.patience import Patience
from pipelocal.system.streams import say
from pipelocal.telemetry.actions import Recorder


class RunUnderWay(Protocol):
    """The parts of a run that are needed to report its failure."""

    control: ControlPlane

    @property
    def recorder(self) -> Recorder:
        """The record of what this rank has done."""

    @property
    def folder(self) -> RunFolder | None:
        """The run's folder, once it exists."""

    def trouble(self) -> StageError | None:
        """The known failure of a neighbouring rank, if any."""


@contextmanager
def failures_told(run: RunUnderWay) -> Iterator[None]:
    """Report this rank's failure to all ranks; if another rank failed first, raise its report."""
    try:
        yield
    except Interrupted as interrupted:
        _tell_last_actions(run, str(interrupted))
        raise
    except BaseException as raised:
        if is_worker_failure(raised):  # torch raises it wherever this thread is
            raised = worker_failed(raised)
        error = _reason_behind(raised, run) if isinstance(raised, Terminated) else raised
        account, own = run.control.fail(error)
        _tell_last_actions(run, account)
        _keep_traceback(run, raised)
        # An error in what all ranks were given is raised by each rank itself.
        same = isinstance(error, UserError) and account.endswith(str(error))
        if not own and not same:
            raise run.control.interruption(account) from raised
        if error is raised:
            raise
        raise error from raised
    finally:
        run.control.stop_watching()


def _reason_behind(terminated: Terminated, run: RunUnderWay) -> BaseException:
    """Return the cause of a SIGTERM: torchrun sends it when a rank is lost, so prefer that error."""
    patience = Patience(CAUSE_PATIENCE_S)
    while not patience.over() and run.control.failure() is None:
        if (trouble := run.trouble()) is not None:
            return trouble
        time.sleep(0.02)
    return terminated


def _tell_last_actions(run: RunUnderWay, account: str) -> None:
    """Print this rank's last actions after a stall, to show who waits for whom."""
    if STALLED in account:
        lines = [f"pipelocal (rank {run.control.world.rank}): last actions, the newest last"]
        lines += [f"  {line}" for line in run.recorder.last_actions()]
        say("\n".join(lines))


def _keep_traceback(run: RunUnderWay, error: BaseException) -> None:
    """Save the traceback of an unexpected error; the user sees one line of it."""
    cause = error.__cause__ if isinstance(error, PipelocalError) else error
    foreseen = PipelocalError | OSError | KeyboardInterrupt | Terminated
    if run.folder is not None and cause is not None and not isinstance(cause, foreseen):
        with suppress(OSError):  # the error itself matters more
            run.folder.write_traceback(run.control.world.rank, error)
