"""All connections of a rank, opened at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipelocal.errors import UserError
from pipelocal.pipeline.placement import Placement
from pipelocal.ranks.breakable import breakable
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import World
from pipelocal.run.assembly import Assembly
from pipelocal.telemetry.clock import seconds_behind_rank_0
from pipelocal.transport.edge import Receiver, Sender
from pipelocal.transport.groups import ReplicaGroup

CONNECT_GRACE_S = 10.0
"""Seconds that all connections together may take longer than the wait for one rank."""


@dataclass(frozen=True, kw_only=True)
class Edges:
    """What a rank is connected to."""

    before: Receiver | None = None
    """The rank, or ranks, before this one."""
    after: Sender | None = None
    """Those behind it."""
    group: ReplicaGroup | None = None
    """The replicas of its stage."""


def connected(
    assembly: Assembly,
    placement: Placement,
    world: World,
    control: ControlPlane,
    *,
    device: torch.device,
    patience_s: float,
    trace: bool = False,
) -> tuple[Edges, float]:
    """Open the edges; a wait for a library that never ends is broken off.

    Args:
        assembly: makes them.
        placement: who holds what.
        world: the ranks.
        control: the control plane.
        device: this rank's.
        patience_s: how long to wait for one rank.
        trace: whether to compare clocks, too.

    Returns:
        The edges, and the seconds that this rank's clock is behind that of rank 0.

    Raises:
        UserError: the ranks do not reach each other.
    """
    if world.size == 1:
        return Edges(), 0.0

    def open_all() -> tuple[Edges, float]:
        if device.type == "cuda":  # every thread has a current device of its own
            torch.cuda.set_device(device)
        _join(world)
        behind_s = seconds_behind_rank_0() if trace else 0.0
        before, after, group = assembly.remote_edges(world, control, placement)
        return Edges(before=before, after=after, group=group), behind_s

    # What waits in it for a certain rank has the same patience, begins later, and tells more.
    timeout_s = patience_s + CONNECT_GRACE_S
    try:
        return breakable(open_all, check=control.check, timeout_s=timeout_s)
    except TimeoutError as error:
        raise UserError(
            f"the ranks did not connect to each other within {timeout_s:g} s: let them through on "
            f"any port, and nothing but them (docs/several-nodes.md), or give a longer --start-timeout"
        ) from error


@contextmanager
def joined(world: World, control: ControlPlane, patience_s: float) -> Iterator[None]:
    """A process group of all ranks, for the time of a block."""
    timeout_s = patience_s + CONNECT_GRACE_S
    breakable(lambda: _join(world), check=control.check, timeout_s=timeout_s)
    yield
    dist.destroy_process_group()


def _join(world: World) -> None:
    dist.init_process_group(
        "gloo",
        store=world.store_of_group(),
        rank=world.rank,
        world_size=world.size,
    )


def disconnect(world: World) -> None:
    """Give up what :func:`connected` opened, when all edges are closed."""
    if world.size > 1:
        dist.destroy_process_group()
