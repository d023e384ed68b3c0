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
        ``eval``, loss and metrics of the last head; ``ensemble``, the metrics of all heads together (None,
        and why in ``no_ensemble``, for a run with ``--votes off``); and ``stages``, a list with ``stage``,
        ``units``, ``loss`` and the metrics. Where accuracy is one of these, ``eval_accuracy`` and
        ``ensemble_accuracy`` repeat it.

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
    source = Source(batches, None, device, check_target=blueprint.check_target)
    workers = assembly.workers(stages, source)
    run_stream(workers, lambda: None)
    if not records:
        raise UserError(
            f"the data of the run in {config.run} has no test part, so there is nothing to evaluate: give "
            f"--data-root a folder with one"
        )
    last, metrics = records[-1], blueprint.recipe.task.metrics
    names = ("loss", *metrics)
    if not config.averaged:
        _compare_with_the_run(metrics[0], last[metrics[0]], finished)
    accuracies = {}
    if "accuracy" in metrics:
        accuracies = {"eval_accuracy": last["accuracy"]}
        accuracies["ensemble_accuracy"] = last["ensemble_accuracy"]
    return {
        "eval": {name: last[name] for name in names},
        "ensemble": last["ensemble"],
        **accuracies,
        "no_ensemble": assembly.contracts.votes.why_not,
        "stages": [
            {
                "stage": record["stage"],
                "units": blueprint.units(record["stage"]),
                **{name: record[name] for name in names},
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


def _compare_with_the_run(metric: str, value: float | None, finished: FinishedRun) -> None:
    evaluated = finished.evaluated
    before, where = evaluated and evaluated.value, "when the run evaluated these weights"
    if finished.at_end and finished.folder.finished:
        summary, where = finished.folder.summary(), "in the run's summary.json"
        before = (summary.get("eval") or {}).get(metric, summary.get(f"eval_{metric}"))
    if before is not None and value != before:
        tell(f"the last head's {metric} is {value} now, and {before} {where}")


def plain_state_dict(run: str, *, averaged: bool = False) -> dict[str, Tensor]:
    """Return the uncut model's state dict of a finished run, by its own names, without auxiliary heads.

    Args:
        run: the run's folder.
        averaged: whether to use the averaged weights of a run with ``--ema``.

    Raises:
        UserError: there is no finished run, it has no averaged weights, or a file is damaged.
    """
    return FinishedRun(run, averaged=averaged).plain_state()
