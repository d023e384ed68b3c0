"""Stand-alone evaluation: runs data through all stages, wherever they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipelocal.data.batches import Batches
from pipelocal.data.dataset import DataInfo
from pipelocal.pipeline.source import Source
from pipelocal.pipeline.worker import Worker, run_stream
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.host import set_up_host, use_interface
from pipelocal.ranks.world import World
from pipelocal.replicas.together import Together
from pipelocal.run.agreement import check_same_data
from pipelocal.run.assembly import Assembly
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.connection import connected, disconnect
from pipelocal.run.failures import failures_told
from pipelocal.run.options import RunOptions
from pipelocal.run.train import Attempt
from pipelocal.stage.replicas import ALONE
from pipelocal.stage.stage import Stage
from pipelocal.telemetry.actions import Recorder


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The result of an evaluation."""

    figures: dict[str, Any]
    """Figures of the last head; ``stages`` holds those of each stage."""
    blueprint: Blueprint
    stages: list[Stage]
    """This rank's stages."""


def evaluate_stages(
    draw: Callable[[DataInfo], Blueprint],
    stages: list[Stage] | None,
    batches: Callable[[], Batches],
    *,
    info: Callable[[], DataInfo],
    options: RunOptions,
    world: World,
) -> Evaluated:
    """Evaluate all heads; all ranks call it together.

    Args:
        draw: returns the cut model for data like this.
        stages: this rank's stages; None to build new ones.
        batches: opens the data, whose test part is used.
        info: returns the description of the data; called by rank 0.
        options: how tensors are sent and where to compute.
        world: the ranks.

    Raises:
        UserError: the data cannot be used.
        StageError: a loss is NaN or infinite.
        Interrupted: another rank failed.
    """
    attempt = Attempt(ControlPlane(world))
    control = attempt.control
    with failures_told(attempt), torch.no_grad():
        use_interface(options.interface)
        set_up_host(options.threads)
        device = world.device(options.device)
        if world.rank == 0:
            opened = batches()
            told: dict[str, Any] = {"info": info().to_json(), "batch_size": opened.batch_size}
            control.put("evaluation", told)
        else:
            told = control.wait_for("evaluation", timeout_s=options.start_timeout)
        blueprint = draw(DataInfo.from_json(told["info"]))
        placement = options.placement(blueprint.stages, world.size)
        seat = placement.seat(world.rank)
        if not stages:
            stages = [
                blueprint.stage_to_evaluate(number, device=device) for number in seat.block.stages
            ]
        records: list[dict[str, Any]] = []
        assembly = Assembly(
            options, blueprint, device, batch_size=told["batch_size"], report=records.append
        )
        edges, _ = connected(
            options,
            assembly.contracts,
            placement,
            world=world,
            control=control,
            device=device,
            recorder=Recorder(),
        )
        for stage in stages:
            stage.join(ALONE if edges.group is None else Together(stage, edges.group))
        incoming = edges.before
        if seat.index == 0:
            own = opened if world.rank == 0 else batches()
            check_same_data(own, control)
            incoming = Source(
                own, None, device, deal=seat.deal, check_target=blueprint.check_target
            )
        assert incoming is not None
        workers = assembly.workers(stages, incoming, edges, reports=seat.replica == 0)
        try:
            run_stream(workers, control.check)
        finally:
            for worker in workers:
                worker.close()
        figures = _shared(workers, blueprint, control, writes=seat.replica == 0)
        control.leave()
    disconnect(world)
    return Evaluated(figures=figures, blueprint=blueprint, stages=stages)


def _shared(
    workers: list[Worker], blueprint: Blueprint, control: ControlPlane, *, writes: bool
) -> dict[str, Any]:
    """Return every stage's figures, identical on every rank."""
    own = {}
    for worker in workers:
        own[worker.stage.number] = worker.evaluation.figures
    if control.world.size > 1 and writes:
        for number, figures in own.items():
            control.put(f"figures/{number}", figures)
    every = [
        own[number] if number in own else control.wait_for(f"figures/{number}")
        for number in range(1, blueprint.stages + 1)
    ]
    names = ("loss", *blueprint.recipe.task.metrics)
    return {**every[-1], "stages": [{name: figures[name] for name in names} for figures in every]}
