"""Opens all connections of a rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from pipelocal.errors import UserError
from pipelocal.pipeline.placement import Placement
from pipelocal.ranks.breakable import breakable
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import World
from pipelocal.run.contracts import Contracts
from pipelocal.run.edges import Edges, open_edges
from pipelocal.run.options import RunOptions
from pipelocal.telemetry.actions import Recorder
from pipelocal.telemetry.clock import seconds_behind_rank_0

T = TypeVar("T")

CONNECT_GRACE_S = 10.0
"""Seconds that opening all connections may take beyond the wait for one rank."""


def connected(
    options: RunOptions,
    contracts: Contracts,
    placement: Placement,
    *,
    world: World,
    control: ControlPlane,
    device: torch.device,
    recorder: Recorder,
) -> tuple[Edges, float]:
    """Open the edges; abort if a library call never returns.

    Args:
        options: the run's options; with a trace, clocks are compared as well.
        contracts: what travels.
        placement: which rank holds which stages.
        world: the ranks.
        control: the control plane.
        device: this rank's device.
        recorder: receives the transfers, and when they were.

    Returns:
        The edges, and the seconds by which this rank's clock lags behind rank 0's.

    Raises:
        UserError: the ranks cannot reach each other.
    """
    if world.size == 1:
        return Edges(), 0.0

    def open_all() -> tuple[Edges, float]:
        if device.type == "cuda":  # each thread has its own current device
            torch.cuda.set_device(device)
        _join(world)
        behind_s = seconds_behind_rank_0() if options.trace else 0.0
        edges = open_edges(
            options,
            contracts,
            placement,
            world=world,
            control=control,
            device=device,
            recorder=recorder,
        )
        return edges, behind_s

    return _in_time(open_all, control, options.start_timeout)


def _in_time(connect: Callable[[], T], control: ControlPlane, patience_s: float) -> T:
    """Run what connects the ranks; abort if it never returns."""
    # Inner waits for a single rank have the same patience, start later and give a better error.
    timeout_s = patience_s + CONNECT_GRACE_S
    try:
        return breakable(connect, check=control.check, timeout_s=timeout_s)
    except TimeoutError as error:
        raise UserError(
            f"the ranks did not connect to each other within {timeout_s:g} s: let them through on "
            f"any port, and nothing but them (docs/several-nodes.md), or give a longer --start-timeout"
        ) from error


@contextmanager
def joined(world: World, control: ControlPlane, patience_s: float) -> Iterator[None]:
    """Provide a process group of all ranks for the duration of a block.

    Raises:
        UserError: the ranks cannot reach each other.
    """
    _in_time(lambda: _join(world), control, patience_s)
    yield
    dist.destroy_process_group()


def _join(world: World) -> None:
    if dist.is_initialized():
        raise UserError(
            "there is a process group of torch.distributed already, and a run over several ranks makes its "
            "own: call torch.distributed.destroy_process_group() before; after a run that failed start all "
            "processes anew, as its transfers cannot be called back"
        )
    dist.init_process_group(
        "gloo",
        store=world.store_of_group(),
        rank=world.rank,
        world_size=world.size,
    )


def disconnect(world: World) -> None:
    """Release what :func:`connected` opened, after all edges are closed."""
    if world.size > 1:
        dist.destroy_process_group()
