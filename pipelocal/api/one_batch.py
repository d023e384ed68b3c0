"""Trains all stages of one process on a single batch, for loops of the user's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pipelocal.data.dataset import DataInfo
from pipelocal.errors import StageError, UserError
from pipelocal.models.payload import Payload, tensors_of, unpack
from pipelocal.pipeline.records import NO_NUMBER
from pipelocal.pipeline.tally import Tally
from pipelocal.run.blueprint import Blueprint
from pipelocal.stage.stage import Stage
from pipelocal.system.tensor_kind import TensorKind
from pipelocal.tasks import Loss


def info_of_batch(x: Payload, target: Tensor) -> DataInfo:
    """Describe the data of which this is a batch."""
    main, beside = unpack(x)
    return DataInfo(
        name="own",
        sample_shape=tuple(main.shape[1:]),
        classes=None,
        target_shape=tuple(target.shape[1:]),
        target_dtype=target.dtype,
        sample_dtype=main.dtype,
        beside=tuple(
            TensorKind(name=f"x{place}", shape=tuple(tensor.shape[1:]), dtype=tensor.dtype)
            for place, tensor in enumerate(beside, start=1)
        ),
    )


def check_batch(x: Payload, target: Tensor) -> None:
    """Refuse what is no batch.

    Raises:
        UserError: inputs and targets are no tensors, or of different numbers of rows.
    """
    for what, tensor in (*(("x", each) for each in tensors_of(x)), ("target", target)):
        if not isinstance(tensor, Tensor) or tensor.dim() == 0:
            raise UserError(f"step: {what} is {type(tensor).__name__}: give a tensor [B, ...]")
    rows = [len(tensor) for tensor in (*tensors_of(x), target)]
    if len({*rows}) > 1 or not rows[0]:
        raise UserError(
            f"step: x and target have {rows} rows: give as many of each, and one or more"
        )


def train_on_batch(
    blueprint: Blueprint, stages: Sequence[Stage], x: Payload, target: Tensor
) -> list[dict[str, Any]]:
    """Train all stages on one batch, in order.

    Args:
        blueprint: the model.
        stages: its stages.
        x: inputs ``[B, ...]``.
        target: targets ``[B, ...]``.

    Returns:
        For each stage ``loss`` and the task's metrics on this batch, before the update.

    Raises:
        DataError: the targets do not fit.
        StageError: a loss is NaN or infinite; the stage has been updated with it.
    """
    blueprint.check_target(target.cpu())
    steps = stages[0].steps
    every = blueprint.recipe.objective.reconcile_every
    reconciles = every is not None and steps % every == 0
    freezing = blueprint.recipe.freezing(blueprint.stages)
    device = next(stages[0].body.parameters(), tensors_of(x)[0]).device
    main, *beside = (tensor.to(device) for tensor in tensors_of(x))
    target = target.to(device)
    made = [main]  # by number of the stage, 0 for the data
    delta: Tensor | None = None
    figures = []
    for stage in stages:
        own = freezing.get(stage.number)
        if own is not None and not stage.frozen and own.due(stage.updated_at, None):
            stage.freeze()
        result = stage.step(
            made[-1],
            target,
            delta if reconciles and stage.wants_delta else None,
            beside=beside,
            relayed={
                relay.name: made[relay.of]
                for relay in blueprint.relays
                if relay.of < stage.number <= relay.until
            },
        )
        metrics, tally = result.metrics, Tally(device, task=stage.task)
        loss = Loss(metrics.loss, metrics.weight)
        tally.add(batch=steps + 1, rows=len(target), loss=loss, sums=metrics.sums)
        if not math.isfinite(mean := float(metrics.loss)):
            raise StageError(NO_NUMBER, stage=stage.number, batch=steps + 1)
        figures.append({"loss": mean, **tally.read_and_reset().metrics})
        made.append(result.output)
        beside = list(result.beside)
        delta = blueprint.summary(stage.number).encode(result.output_gradient)
    return figures
