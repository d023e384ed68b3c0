"""Evaluation and export of a finished run, in one process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelocal.build import Blueprint
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.config import EvaluateConfig, ExportConfig
from pipelocal.data import load_dataset
from pipelocal.data.batches import BatchStream
from pipelocal.errors import UserError
from pipelocal.host import set_up_host
from pipelocal.pipeline.assembly import Assembly
from pipelocal.pipeline.source import Source
from pipelocal.pipeline.worker import run_stream
from pipelocal.world import World


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Accuracy of every head of a finished run on its test data.

    Returns:
        ``eval_accuracy`` (last head), ``ensemble_accuracy`` and ``stages``, a list with ``stage``,
        ``units``, ``loss`` and ``accuracy``.

    Raises:
        UserError: no finished run, or its data cannot be read.
    """
    folder = RunFolder.open(config.run)
    run = folder.config()
    set_up_host(run.threads)
    device = World.alone().device(config.device)
    blueprint = Blueprint.draw(run)
    dataset = load_dataset(run.data, root=config.data_root or run.data_root, seed=run.seed)
    batch_size = run.batch_size if config.batch_size is None else config.batch_size
    batches = BatchStream(dataset, batch_size=batch_size, seed=run.seed)
    stages = []
    for number in range(1, blueprint.stages + 1):
        stage = blueprint.build_stage(number, run, device=device, total_steps=1)
        blueprint.load_weights(stage, folder.load_stage(number))
        stages.append(stage)
    records: list[dict[str, Any]] = []
    assembly = Assembly(run, blueprint, device, report=records.append)
    workers = assembly.workers(stages, Source(batches, None, device), None)
    run_stream(workers, lambda: None)
    return {
        "eval_accuracy": records[-1]["accuracy"],
        "ensemble_accuracy": records[-1]["ensemble_accuracy"],
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


def plain_state_dict(run: str) -> dict[str, Tensor]:
    """The uncut model of a finished run, by its own names and without auxiliary heads.

    Raises:
        UserError: no finished run, or a damaged file.
    """
    folder = RunFolder.open(run)
    config = folder.config()
    blueprint = Blueprint.draw(config)
    return blueprint.plain_state(folder.load_stage(k + 1) for k in range(blueprint.stages))


def export(config: ExportConfig) -> int:
    """Write :func:`plain_state_dict` to a file; returns the number of tensors.

    Raises:
        UserError: no finished run, or the file cannot be written.
    """
    state = plain_state_dict(config.run)
    try:
        # By way of a buffer: torch.save would put the file's own name into the file.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        Path(config.to).write_bytes(buffer.getbuffer())
    except OSError as error:
        raise UserError(f"--to {config.to} cannot be written: {error}") from error
    return len(state)
