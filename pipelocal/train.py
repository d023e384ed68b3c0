"""Training from options to run folder.

Every rank runs :func:`train`. Rank 0 also makes the run folder, reads the data, shows the progress
and writes the summary.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

import torch

from pipelocal.build import Blueprint
from pipelocal.config import TrainConfig
from pipelocal.control import ControlPlane
from pipelocal.errors import (
    Terminated,
    UserError,
)
from pipelocal.failures import failures_told
from pipelocal.host import set_up_host, use_interface
from pipelocal.partition import other_reading
from pipelocal.pipeline.placement import place
from pipelocal.run import Run
from pipelocal.streams import for_progress
from pipelocal.world import World


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
    config.validate()
    blueprint = Blueprint.draw(config)
    use_interface(config.interface)
    world = world or World.from_environment(start_timeout_s=config.start_timeout)
    _check_bp_alone(config, world)
    _check_gap_alone(config, world)
    if config.cut is not None and world.rank == 0:
        other = other_reading(blueprint.chain, config.cut)
        if other is not None:
            sys.stderr.write(f"pipelocal: {other}\n")
    counts = config.replica_counts(blueprint.stages)
    if counts is not None:  # otherwise rank 0 will choose them
        place(blueprint.stages, world.size, counts)
    set_up_host(config.threads)
    device = world.device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    control = ControlPlane(world)
    run = Run(config, blueprint, world, device, control)
    with failures_told(run):
        summary = run.execute(for_progress(stream or sys.stdout))
    if run.stopped_at is not None:
        raise Terminated(
            f"{run.wishes.reason or 'the first rank was told to'}; a snapshot after batch "
            f"{run.stopped_at} is in {run.folder and run.folder.path}: the same command goes on from it",
            run.wishes.number,
        )
    return summary


def _check_bp_alone(config: TrainConfig, world: World) -> None:
    if config.objective == "bp" and world.size > 1:
        raise UserError(
            f"--objective bp trains the uncut model in one process, but {world.size} ranks were "
            f"started: start it without torchrun, or choose greedy or sgr"
        )


def _check_gap_alone(config: TrainConfig, world: World) -> None:
    if config.measure_bp_gap is not None and world.size > 1:
        raise UserError(
            f"--measure-bp-gap needs all stages in one process, but {world.size} ranks were started: "
            f"start it without torchrun, or leave the option out"
        )
