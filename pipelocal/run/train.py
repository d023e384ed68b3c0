"""Executes a run on this rank and reports its failures to all ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import torch

from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.errors import StageError, Terminated, UserError
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import START_TIMEOUT_S, World
from pipelocal.run.agreement import check_same_options
from pipelocal.run.failures import failures_told
from pipelocal.run.run import BeginWith, Run
from pipelocal.run.spec import Spec
from pipelocal.system.signals import end_on_signals_again
from pipelocal.system.streams import for_progress
from pipelocal.telemetry.actions import Recorder

LOGGERS_S = 60.0
"""Seconds that a finished run waits for its loggers."""

LOGGERS_FAILED_S = 5.0
"""The same of a run that failed or was stopped, whose launcher may not wait much longer."""


class Attempt:
    """The parts of a run that exist from the very start, so that any failure can be reported.

    Args:
        control: the control plane.
    """

    def __init__(self, control: ControlPlane) -> None:
        self.control = control
        self.run: Run | None = None

    @property
    def recorder(self) -> Recorder:
        """The record of what this rank has done."""
        return Recorder() if self.run is None else self.run.recorder

    @property
    def folder(self) -> RunFolder | None:
        """The run's folder, once it exists."""
        return None if self.run is None else self.run.folder

    def trouble(self) -> StageError | None:
        """Return the known failure of a neighbouring rank, if any."""
        return None if self.run is None else self.run.trouble()


@torch.enable_grad()
def run_training(
    make: Callable[[], Spec],
    *,
    text: Mapping[str, Any],
    own: frozenset[str],
    patience_s: float = START_TIMEOUT_S,
    world: World | None = None,
    stream: TextIO | None = None,
    begin_with: BeginWith | None = None,
) -> tuple[Run, dict[str, Any]]:
    """Train, on every rank.

    Sets the process's number of CPU threads, and draws from torch's default generators.

    Args:
        make: makes the specification; a user error in it is reported once the ranks have met.
        text: the requested options, as plain values by name.
        own: names of options in which ranks may differ.
        patience_s: seconds to wait for the other ranks.
        world: the ranks; by default those of torchrun, or this process alone.
        stream: where progress is shown (rank 0); standard output by default.
        begin_with: see :class:`~pipelocal.run.run.Run`.

    Returns:
        The run, and its summary.

    Raises:
        UserError: the options, the data or the run folder cannot be used.
        StageError: a stage of this rank cannot continue.
        Interrupted: another rank failed.
        Terminated: a signal ended the run; a snapshot exists to continue from.
    """
    end_on_signals_again()
    spec, refused = None, None
    try:
        spec = make()
    except UserError as error:
        refused, patience_s = error, START_TIMEOUT_S
    world = world or World.from_environment(start_timeout_s=patience_s)
    attempt = Attempt(ControlPlane(world))
    loggers_s = LOGGERS_FAILED_S
    try:
        with failures_told(attempt):
            # First, so that differing options are named as the cause of any further error.
            check_same_options(text, attempt.control, own=own)
            if refused is not None:
                raise refused
            assert spec is not None
            run = attempt.run = Run(spec, world, attempt.control, begin_with=begin_with)
            summary = run.execute(for_progress(stream or sys.stdout))
        if summary is not None:
            loggers_s = LOGGERS_S
    finally:
        if attempt.run is not None:  # only now, when no rank waits for this one
            attempt.run.loggers.wait(loggers_s)
    if summary is None:
        raise Terminated(
            f"{run.wishes.reason or 'the first rank was told to'}; a snapshot after batch "
            f"{run.stopped_at} is in {run.folder and run.folder.path}: the same command goes on from it",
            run.wishes.number,
        )
    return run, summary
