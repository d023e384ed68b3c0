"""Tries a task: are its names free, what shapes have its sums, and can its loss be trusted?"""

from __future__ import annotations

import copy
import warnings
from contextlib import suppress
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.seeding import seeded
from pipelocal.tasks.task import Shape, Task, batch_of

TAKEN = frozenset(
    [
        *(
            "loss",
            "weight",
            "event",
            "stage",
            "stages",
            "epoch",
            "step",
            "steps",
            "time_s",
            "seconds",
        ),
        *("rank", "replica", "units", "reconciliation", "cosine", "residual", "cap", "ensemble"),
        *("learning_rate", "samples_per_second", "busy_fraction", "peak_memory_bytes", "frozen_at"),
    ]
)
"""What records hold besides a task's metrics."""

LARGE = 1_000_000
"""Numbers in a row of an output above which it is tried without memory first."""

MEMBERS = ("metrics", "loss", "sums", "figures", "output_shape", "votes", "from_votes")


def check_task(task: Any) -> None:
    """Refuse what is no task, and names of metrics that cannot stand in a record.

    Raises:
        UserError: says what is missing or wrong.
    """
    what = f"task {type(task).__name__}"
    if isinstance(task, type):
        raise UserError(f"task: give an object, {task.__name__}(), and not its class")
    for member in MEMBERS:
        if not hasattr(task, member):
            raise UserError(
                f"{what} has no '{member}': derive it from pipelocal.tasks.Task, or give a ready one, such "
                f"as pipelocal.tasks.Regression()"
            )
    names = task.metrics
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{what}: metrics is {names!r}: give a tuple of names")
    if not names:
        raise UserError(f"{what}: metrics is empty: give at least one, which says what is best")
    taken = [name for name in names if name in TAKEN or names.count(name) > 1]
    if taken:
        raise UserError(f"{what}: the metric '{taken[0]}' is there already: give another name")


def shapes_of_sums(
    task: Task,
    output_shape: Shape,
    target_shape: Shape,
    target_dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Shape]:
    """Return the shape of each of a task's sums, which replicas without a batch need to know.

    Args:
        task: the task.
        output_shape: shape of one row of an output.
        target_shape: shape of one row of the targets.
        target_dtype: their dtype.
        device: where the stage computes.

    Raises:
        UserError: the task cannot take zeros, or one of its sums has a name that is taken.
    """
    # Large outputs, as of a vocabulary, without memory if the task can; meta tensors take seconds to import.
    large = prod(output_shape) > LARGE
    for where in (torch.device("meta"), device) if large else (device,):
        output = torch.zeros(2, *output_shape, device=where)
        target = torch.zeros(2, *target_shape, dtype=target_dtype, device=where)
        try:
            with torch.no_grad():
                found = task.sums(output, target)
            break
        except Exception as error:
            reason = " ".join(str(error).split())
    else:
        raise UserError(
            f"task {type(task).__name__}: sums does not take outputs {list(output.shape)} and targets "
            f"{list(target.shape)} of zeros, by which their shapes are learnt: {reason}"
        )
    for name in ("loss", "weight"):
        if name in found:
            raise UserError(
                f"task {type(task).__name__}: figures is given '{name}' anyway: call that of sums otherwise"
            )
    return {n: tuple(s.shape) if isinstance(s, Tensor) else () for n, s in found.items()}


def check_loss(
    task: Task, output_shape: Shape, target_shape: Shape, target_dtype: torch.dtype
) -> None:
    """Refuse a loss that spreads targets over outputs of another shape, or keeps state of its own.

    State has its place in the buffers of an ``nn.Module``: anywhere else stages of one process would share
    it, those of several would not, and no snapshot would hold it.

    Args:
        task: the task.
        output_shape: shape of one row of an output.
        target_shape: shape of one row of the targets.
        target_dtype: their dtype.

    Raises:
        UserError: torch warns of the shapes; or called again with the same numbers, the loss is another.
    """
    if prod(output_shape) > LARGE:
        return
    is_module = isinstance(getattr(task, "loss_function", None), nn.Module)
    target = torch.zeros(2, *target_shape, dtype=target_dtype)
    with seeded(0, "loss"):
        output = torch.randn(2, *output_shape)
    means: list[float] = []
    with warnings.catch_warnings(record=True) as warned, suppress(Exception):
        warnings.simplefilter("always")  # an exception, as it is, the first batch tells
        tried = copy.deepcopy(task)
        for _ in range(1 if is_module else 2):
            with seeded(0, "loss"):
                found = tried.loss(output.clone().requires_grad_(), target)
            means.append(float(found.mean.detach()))
    shapes = (
        f"Using a target size ({target.shape}) that is different to the input size ({output.shape})"
    )
    if any(str(each.message).startswith(shapes) for each in warned):
        raise UserError(
            f"loss: it spreads targets {batch_of(target_shape)} over outputs {batch_of(output_shape)}: "
            f"choose a loss for such targets, or give both one shape"
        )
    if not means:
        return
    if means[0] != means[-1] and means[0] == means[0]:
        raise UserError(
            f"loss: called twice with the same numbers it gives {means[0]!r} and {means[-1]!r}, so it keeps "
            f"something that neither other stages nor a snapshot have: give an nn.Module that keeps it in "
            f"buffers (self.register_buffer)"
        )
