"""Evaluation of a finished run, in one process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from pipelocal.config import EvaluateConfig
from pipelocal.data import load_dataset
from pipelocal.data.batches import BatchStream
from pipelocal.finished import FinishedRun
from pipelocal.host import set_up_host
from pipelocal.pipeline.assembly import Assembly
from pipelocal.pipeline.source import Source
from pipelocal.pipeline.worker import run_stream
from pipelocal.world import World


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Accuracy of every head of a finished run on its test data.

    Returns:
        ``eval_accuracy`` (last head), ``ensemble_accuracy`` (None, and why in ``no_ensemble``, for a run
        with ``--votes off``) and ``stages``, a list with ``stage``, ``units``, ``loss`` and ``accuracy``.

    Raises:
        UserError: no finished run, or its data cannot be read.
    """
    finished = FinishedRun(config.run, averaged=config.averaged)
    run, blueprint = finished.config, finished.blueprint
    set_up_host(run.threads)
    device = World.alone().device(config.device)
    dataset = load_dataset(run.data, root=config.data_root or run.data_root, seed=run.seed)
    batch_size = run.batch_size if config.batch_size is None else config.batch_size
    batches = BatchStream(dataset, batch_size=batch_size, seed=run.seed)
    stages = finished.stages(device)
    records: list[dict[str, Any]] = []
    if run.votes == "auto":
        run = replace(run, votes="on")  # they travel nowhere here
    assembly = Assembly(run, blueprint, device, report=records.append)
    workers = assembly.workers(stages, Source(batches, None, device), None)
    run_stream(workers, lambda: None)
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


def plain_state_dict(run: str, *, averaged: bool = False) -> dict[str, Tensor]:
    """The uncut model of a finished run, by its own names and without auxiliary heads.

    Args:
        run: the run's folder.
        averaged: take the averaged weights, of a run with ``--ema``.

    Raises:
        UserError: no finished run, one without averaged weights, or a damaged file.
    """
    return FinishedRun(run, averaged=averaged).plain_state()
