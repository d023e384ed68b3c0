"""Training from options to run folder.

Every rank runs :func:`train`. Rank 0 also makes the run folder, reads the data, shows the progress
and writes the summary.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

import torch

from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.errors import (
    Terminated,
    UserError,
)
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import START_TIMEOUT_S, World
from pipelocal.run.agreement import check_same_options
from pipelocal.run.failures import failures_told
from pipelocal.run.run import Run
from pipelocal.system.streams import for_progress


@torch.enable_grad()
def train(
    config: TrainConfig, world: World | None = None, *, stream: TextIO | None = None
) -> dict[str, Any] | None:
    """Train as the options say.

    Args:
        config: the options.
        world: the ranks; by default as torchrun describes them, or this process alone.
        stream: where progress is shown (rank 0); standard output by default.

    Sets the process's number of CPU threads, and draws from torch's default generators.

    Returns:
        The summary on rank 0, None on the others.

    Raises:
        UserError: the options, the data or the run folder cannot be used.
        StageError: a stage of this rank could not go on.
        Interrupted: another rank failed.
    """
    refused = _refusal(config)
    patience = START_TIMEOUT_S if refused is not None else config.start_timeout
    world = world or World.from_environment(start_timeout_s=patience)
    control = ControlPlane(world)
    run = Run(config, world, control)
    with failures_told(run):
        check_same_options(config, control)  # first: where they differ, that is the reason to name
        if refused is not None:
            raise refused
        summary = run.execute(for_progress(stream or sys.stdout))
    if run.stopped_at is not None:
        raise Terminated(
            f"{run.wishes.reason or 'the first rank was told to'}; a snapshot after batch "
            f"{run.stopped_at} is in {run.folder and run.folder.path}: the same command goes on from it",
            run.wishes.number,
        )
    return summary


def _refusal(config: TrainConfig) -> UserError | None:
    """Why the options cannot be used, whatever the ranks; None if they can."""
    try:
        validate(config)
    except UserError as error:
        return error
    return None
