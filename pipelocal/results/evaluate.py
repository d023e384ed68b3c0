"""Evaluates a finished run in one process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from pipelocal.checkpoint.description import data_differences
from pipelocal.config import EvaluateConfig
from pipelocal.config.resolve import open_data
from pipelocal.data import DATASETS
from pipelocal.data.batches import Batches
from pipelocal.errors import UserError
from pipelocal.options import check_values
from pipelocal.pipeline.source import Source
from pipelocal.pipeline.worker import run_stream
from pipelocal.ranks.host import set_up_host
from pipelocal.ranks.world import World
from pipelocal.references import is_reference
from pipelocal.results.saved_run import FinishedRun
from pipelocal.run.assembly import Assembly
from pipelocal.system.streams import tell


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate every head of a finished run on its test data.

    Returns:
        ``eval_accuracy`` (last head), ``ensemble_accuracy`` (None, and why in ``no_ensemble``, for a run
        with ``--votes off``) and ``stages``, a list with ``stage``, ``units``, ``loss`` and ``accuracy``.

    Raises:
        UserError: there is no finished run, or its data cannot be read.
    """
    check_values(config)
    finished = FinishedRun(config.run, averaged=config.averaged)
    run, blueprint = finished.config, finished.blueprint
    set_up_host(run.threads)
    device = World.alone().device(config.device)
    batches = _data(config, finished)
    stages = finished.stages(device)
    records: list[dict[str, Any]] = []
    if run.votes == "auto":
        run = replace(run, votes="on")  # they cross no rank here
    assembly = Assembly(
        run, blueprint, device, batch_size=batches.batch_size, report=records.append
    )
    workers = assembly.workers(stages, Source(batches, None, device), None)
    run_stream(workers, lambda: None)
    if not config.averaged:
        _compare_with_the_run(records[-1]["accuracy"], finished)
    return {
        "eval_accuracy": records[-1]["accuracy"],
        "ensemble_accuracy": records[-1].get("ensemble_accuracy"),
        "no_ensemble": assembly.votes.why_not,
        "stages": [
            {
                "stage": record["stage"],
                "units": blueprint.units(record["stage"]),
                "loss": record["loss"],
                "accuracy": record["accuracy"],
            }
            for record in records
        ],
    }


def _data(config: EvaluateConfig, finished: FinishedRun) -> Batches:
    """Open the run's current data; report if they have changed."""
    run = replace(
        finished.config,
        data_root=config.data_root or finished.config.data_root,
        batch_size=config.batch_size or finished.config.batch_size,
    )
    if run.data not in DATASETS and not is_reference(run.data):
        raise UserError(
            f"the run in {config.run} was trained on data set '{run.data}', which is not known here: "
            f"evaluate it from the script that registers it"
        )
    batches = open_data(run)
    changed = data_differences(finished.description.data, batches.describe())
    if changed:
        tell(f"since the run in {config.run} was trained, its data changed: {'; '.join(changed)}")
    return batches


def _compare_with_the_run(accuracy: float | None, finished: FinishedRun) -> None:
    before, where = finished.accuracy, "when the run evaluated these weights"
    if finished.at_end and finished.folder.finished:
        before, where = finished.folder.summary()["eval_accuracy"], "in the run's summary.json"
    if before is not None and accuracy != before:
        tell(f"the last head's accuracy is {accuracy} now, and {before} {where}")


def plain_state_dict(run: str, *, averaged: bool = False) -> dict[str, Tensor]:
    """Return the uncut model's state dict of a finished run, by its own names, without auxiliary heads.

    Args:
        run: the run's folder.
        averaged: whether to use the averaged weights of a run with ``--ema``.

    Raises:
        UserError: there is no finished run, it has no averaged weights, or a file is damaged.
    """
    return FinishedRun(run, averaged=averaged).plain_state()
