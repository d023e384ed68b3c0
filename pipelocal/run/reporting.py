"""How rank 0 shows a run and writes its records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TextIO

from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.loggers import LoggedRun
from pipelocal.loggers.feed import Feeds
from pipelocal.pipeline.placement import Placement
from pipelocal.pipeline.timetable import Timetable
from pipelocal.ranks.control import ControlPlane
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.spec import Spec
from pipelocal.telemetry.progress import StageRow
from pipelocal.telemetry.reporter import Reporter
from pipelocal.telemetry.view import make_view


def make_reporter(
    spec: Spec,
    blueprint: Blueprint,
    placement: Placement,
    plan: Timetable,
    folder: RunFolder | None,
    control: ControlPlane,
    stream: TextIO,
    loggers: Feeds,
) -> Reporter:
    """Show a run on rank 0, write its records, and start its loggers.

    Args:
        spec: the run.
        blueprint: the cut model.
        placement: which rank holds which stage.
        plan: how long is trained.
        folder: the run's folder; None to write nothing.
        control: where the records of all ranks come in.
        stream: where progress is shown.
        loggers: take the records too.
    """
    rows = [
        StageRow(stage=stage, rank=_listed(block.ranks), units=blueprint.units(stage))
        for block in placement.blocks
        for stage in block.stages
    ]
    view = make_view(stream, plain=spec.options.plain)
    where = "nothing is kept" if folder is None else str(folder.path)
    view.start(
        f"{spec.title}: {len(rows)} stage(s) on {control.world.size} rank(s), "
        f"{plan.total_steps} batches of {spec.text['batch_size']}, {where}"
    )
    metrics = None if folder is None else folder.metrics
    path = None if folder is None else folder.path
    loggers.start(LoggedRun(title=spec.title, folder=path, options=spec.text), metrics)
    return Reporter(
        take=control.take_records,
        on_error=control.fail,
        metrics=metrics,
        view=view,
        loggers=loggers,
        rows=rows,
        total_steps=plan.total_steps,
        epochs=plan.epochs_begun,
        task_metrics=spec.recipe.task.metrics,
    )


def all_finals(
    reporter: Reporter, placement: Placement, control: ControlPlane
) -> list[dict[str, Any]]:
    """Return the last records of all stages, one per replica, once every stage is saved."""
    count = sum(len(block.stages) * block.replicas for block in placement.blocks)
    while len(reporter.finals) < count:
        control.check()  # raises when one of them cannot
        time.sleep(0.01)
    return reporter.finals


def _listed(ranks: Sequence[int]) -> str:
    """Format ranks such as ``3``, or ``1,2`` for two replicas."""
    return ",".join(map(str, ranks))
