"""Tasks and losses by name, as the command line takes them."""

from __future__ import annotations

import copy
from dataclasses import is_dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from pipelocal.errors import UserError
from pipelocal.registry import Registry
from pipelocal.tasks.classification import Classification
from pipelocal.tasks.multi_label import MultiLabel
from pipelocal.tasks.next_token import NextToken
from pipelocal.tasks.regression import LOSSES as OF_REGRESSION
from pipelocal.tasks.regression import Regression
from pipelocal.tasks.segmentation import Segmentation
from pipelocal.tasks.task import LossFunction, Task
from pipelocal.tasks.trial import check_task

TASKS: Registry[Any] = Registry("task", takes=None)
"""Tasks, and functions or classes that make one when called with nothing."""

TASKS.register("classification")(Classification)
TASKS.register("next-token")(NextToken)
TASKS.register("multi-label")(MultiLabel)
TASKS.register("regression")(Regression)
TASKS.register("segmentation")(Segmentation)

LOSSES: Registry[LossFunction] = Registry("loss", takes="output, target")
"""Functions of outputs and targets, each the mean over the batch; those with names are of regression."""

for _name, _loss in OF_REGRESSION.items():
    LOSSES.register(_name)(_loss)


def task_named(name: str, loss: str | None = None) -> Task:
    """Return the task of a name or a reference, with another loss if one is named.

    Raises:
        UserError: there is none, it is no task, or it cannot take the loss.
    """
    found = TASKS.get(name)
    if isinstance(found, type) or (callable(found) and not hasattr(found, "metrics")):
        try:
            found = found()
        except TypeError as error:
            raise UserError(
                f"task '{name}' cannot be made ({error}): name an object, or what makes one when it is "
                f"called with nothing"
            ) from error
    check_task(found)
    task: Task = found
    if loss is None:
        return task
    if loss in OF_REGRESSION and not isinstance(task, Regression):
        raise UserError(f"--loss {loss} is of --task regression, and this is {name}: leave it out")
    return with_loss(task, LOSSES.get(loss))


def with_loss(task: Task, loss: LossFunction) -> Task:
    """Return a task with another loss.

    Raises:
        UserError: it has a loss of its own.
    """
    change = getattr(task, "with_loss", None)
    if change is None:
        raise UserError(
            f"the task {type(task).__name__} has a loss of its own: leave the other one out"
        )
    changed: Task = change(loss)
    return changed


def own_task(task: Task, device: torch.device) -> Task:
    """Return a stage's own task: if its loss is a module, with a copy of that on the stage's device.

    So stages of one process do not share what a loss keeps in its buffers, as stages of several do not.

    Raises:
        UserError: the loss has parameters to train.
    """
    loss = getattr(task, "loss_function", None)
    if not isinstance(loss, nn.Module) or not hasattr(task, "with_loss"):
        return task
    if names := [name for name, each in loss.named_parameters() if each.requires_grad]:
        raise UserError(
            f"loss: {type(loss).__name__} has parameters to train ({', '.join(names[:3])}), and a loss is "
            f"not trained: make buffers of them, or write an objective that has them"
        )
    return with_loss(task, copy.deepcopy(loss).to(device))


def with_smoothing(task: Task, smoothing: float) -> Task:
    """Return a task with label smoothing in its loss.

    Args:
        task: has a field ``label_smoothing``, such as a classification.
        smoothing: from 0 to below 1; replaces the task's own.

    Raises:
        UserError: it has none, or a loss that is not the cross entropy.
    """
    if not is_dataclass(task) or not hasattr(task, "label_smoothing"):
        raise UserError(
            f"--head-smoothing {smoothing}: the task {type(task).__name__} has no label smoothing: leave "
            f"it out, or choose --task classification"
        )
    if getattr(task, "loss_function", None) is not None:
        raise UserError(
            f"--head-smoothing {smoothing}: label smoothing is of the cross entropy: leave it out, or the "
            f"loss of your own"
        )
    return cast(Task, replace(cast(Any, task), label_smoothing=smoothing))
