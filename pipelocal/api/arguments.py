"""Converts the arguments of a Pipeline to what its parts take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from numbers import Integral, Real
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from pipelocal.checkpoint.description import ModelDescription
from pipelocal.errors import UserError
from pipelocal.models import Chain
from pipelocal.models.fingerprint import fingerprint
from pipelocal.options import DECAY, NORM, PENALTY, check_values
from pipelocal.partition.partitioners import PARTITIONERS, WITHOUT_EFFECT, Partitioner
from pipelocal.run.costs import CutRequest
from pipelocal.run.options import RunOptions
from pipelocal.stage.freezing import parse_freezing
from pipelocal.stage.lr_schedule import LR_SCHEDULES, scheduled
from pipelocal.stage.recipe import FreezingOf, ScheduleBuilder, never_frozen
from pipelocal.system.describing import described
from pipelocal.system.quantities import parse_speeds
from pipelocal.tasks import Classification, LossFunction, Task
from pipelocal.tasks.registry import with_loss
from pipelocal.tasks.trial import check_task

NOT_HERE = ("epochs", "max_steps", "evaluate_every", "accept_changes", "resume", "log")
"""Run options that a Pipeline refuses: arguments of :meth:`Pipeline.fit`, or meaningless without names."""


def default_optimizer(named: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """Make the optimizer that the command line uses by default."""
    parameters = [parameter for _, parameter in named]
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)


def schedule_of(schedule: ScheduleBuilder | str | None) -> ScheduleBuilder | None:
    """Return what builds learning-rate schedules; a name stands for a ready one."""
    if not isinstance(schedule, str):
        return schedule
    return partial(scheduled, factor=LR_SCHEDULES.get(schedule))


def freezing_of(text: str | None) -> FreezingOf:
    """Return what decides when stages are frozen."""
    return never_frozen if text is None else lambda stages: parse_freezing(text, stages=stages)


def task_of(task: Task | None, loss: LossFunction | None) -> Task:
    """Return the task, by default classification, with the given loss.

    Raises:
        UserError: it is no task, or it has a loss of its own.
    """
    task = Classification() if task is None else task
    check_task(task)
    return task if loss is None else with_loss(task, loss)


def options_of(given: Mapping[str, Any]) -> RunOptions:
    """Check a Pipeline's further keyword arguments and return them as run options.

    Raises:
        UserError: one is unknown or out of range.
    """
    known = [each.name for each in fields(RunOptions) if each.name not in NOT_HERE]
    for name in given:
        if name not in known:
            raise UserError(
                f"Pipeline takes no argument '{name}': further ones are {', '.join(known)}"
            )
    replicas = given.get("replicas", "1")
    options = RunOptions(**{**given, "replicas": str(replicas)})
    check_values(options)
    return options


LIMITS = {"clip_norm": NORM, "ema": DECAY, "transport_penalty": PENALTY}
NUMBER = ((Real,), "a number")
LIST = ((list, tuple), "a list")
KINDS: dict[str, tuple[tuple[Any, ...], str]] = {
    **dict.fromkeys(LIMITS, NUMBER),
    **dict.fromkeys(("seed", "batch_size", "workers"), ((Integral,), "a whole number")),
    **dict.fromkeys(("input_shape", "speeds", "callbacks"), LIST),
    "cut": ((list, tuple), "a list of units' names, such as ['layer2', 'layer3']"),
    "head": ((str, Callable), "a head's name, or a function that builds one"),
    "loss": ((Callable,), "a function of outputs and targets (names are for Regression(loss=))"),
    "optimizer": ((Callable,), "a function of (name, parameter) pairs that returns one"),
    "schedule": (
        (str, Callable),
        "a function of an optimizer and the number of updates, or 'cosine'",
    ),
    "balance": ((str, Callable), "count, time, memory, a run's folder, or a function"),
    "freeze_stage": ((str,), "text such as '1:500'"),
    "out": ((str, PathLike), "a folder"),
}
"""What arguments of a Pipeline have to be."""


def check_kinds(**given: object) -> None:
    """Refuse arguments of a Pipeline that are of another kind, or numbers out of bounds; None is skipped.

    Raises:
        UserError: names the argument, what was given and what is wanted.
    """
    for name, value in given.items():
        kinds, wanted = KINDS[name]
        if value is None:
            continue
        if not isinstance(value, kinds):
            shown = repr(value) if isinstance(value, str | Real) else type(value).__name__
            raise UserError(f"Pipeline: {name}={shown}: give {wanted}")
        if name in LIMITS and isinstance(value, Real):
            LIMITS[name].check(name, value if isinstance(value, int) else float(value))


def cut_of(
    stages: int | None,
    cut: Sequence[str] | None,
    balance: str | Partitioner,
    memory_limit: int | None,
    speeds: Sequence[float] | None,
) -> CutRequest:
    """Return the request for where to cut the model.

    Raises:
        UserError: both of ``stages`` and ``cut`` are given, or neither.
    """
    if (stages is None) == (cut is None):
        raise UserError(
            "Pipeline: give either stages, how many there shall be, or cut, where they begin"
        )
    if cut is not None and not all(isinstance(unit, str) for unit in cut):
        raise UserError(f"Pipeline: cut={[*cut]}: give {KINDS['cut'][1]}")
    if stages is not None and (not isinstance(stages, int) or stages < 1):
        raise UserError(f"Pipeline: stages={stages!r}: give a whole number of at least 1")
    name = balance if isinstance(balance, str) else described(balance)
    stages = len(cut or ()) + 1 if stages is None else stages
    if memory_limit is not None and name in WITHOUT_EFFECT["memory_limit"]:
        raise UserError("Pipeline: memory_limit is for balance='memory' or 'time': add it")
    if memory_limit is not None and (not isinstance(memory_limit, int) or memory_limit < 1):
        raise UserError(f"Pipeline: memory_limit={memory_limit!r}: give a number of bytes")
    if speeds is not None and name in WITHOUT_EFFECT["speeds"]:
        raise UserError("Pipeline: speeds is for balance='time': add it")
    if speeds is not None:
        parse_speeds("Pipeline: speeds", ",".join(map(str, speeds)), stages)
    return CutRequest(
        stages=stages,
        cut=None if cut is None else tuple(cut),
        partitioner=PARTITIONERS.get(balance) if isinstance(balance, str) else balance,
        name=name,
        measured=balance != "count",
        memory_limit=memory_limit,
        speeds=None if speeds is None else tuple(speeds),
    )


def described_model(chain: Chain) -> ModelDescription:
    """Describe a model for comparison between ranks and runs; a module's weights are included."""
    first = None
    if chain.given is not None:
        values = (v for v in chain.given.state_dict().values() if isinstance(v, Tensor))
        sums = [(float(v.double().sum()), float(v.double().abs().sum())) for v in values]
        first = hashlib.sha256(repr(sums).encode()).hexdigest()[:12]
    return ModelDescription(units=fingerprint(chain), first_weights=first)
