"""What every stage of a network is made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pipelocal.errors import UserError
from pipelocal.heads import HeadBuilder
from pipelocal.objective import BackPropagation, ObjectiveRecipe, Place
from pipelocal.stage.freezing import Freezing
from pipelocal.stage.options import ComputeOptions
from pipelocal.tasks import Task

Named = tuple[str, nn.Parameter]

OptimizerBuilder = Callable[..., torch.optim.Optimizer]
"""Called with the stage's parameters as pairs of name and parameter (the model's own names; those of a head
begin with ``head/``, those of an objective with ``objective/``), in the model's order; and with the stage's
:class:`~pipelocal.objective.local.Place` where it takes a second argument."""

ScheduleBuilder = Callable[[torch.optim.Optimizer, int], LRScheduler]
"""Called with a stage's optimizer and the total number of updates. Stepped once behind every update, but a
:class:`~pipelocal.stage.lr_schedule.BatchLR` once for every batch."""

FreezingOf = Callable[[int], dict[int, Freezing]]
"""Called with the number of stages; what says when a stage is frozen, by its number."""


def never_frozen(_stages: int) -> dict[int, Freezing]:
    """No stage is frozen."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Objects of which every stage makes its own; knows no ranks and no cut.

    Args:
        task: what is learnt.
        head: makes the auxiliary heads.
        objective: makes the objectives.
        optimizer: makes the optimizers.
        schedule: makes the learning-rate schedules; None for constant rates.
        clip: greatest L2 norm of a stage's gradient in an update; None for any.
        ema: weight of the average so far in an average of the weights; None for none.
        freezing: what freezes stages.
        seed: of all that is drawn.
        compute: how stages compute.
    """

    task: Task
    head: HeadBuilder
    objective: ObjectiveRecipe
    optimizer: OptimizerBuilder
    schedule: ScheduleBuilder | None = None
    counts_batches: bool = False
    """Whether ``schedule`` is called with the number of batches, and not of updates."""
    clip: float | None = None
    ema: float | None = None
    freezing: FreezingOf = field(default=never_frozen)
    seed: int = 0
    compute: ComputeOptions = field(default_factory=ComputeOptions)

    @property
    def uncut(self) -> bool:
        """Whether the model is trained whole, in one process."""
        return isinstance(self.objective, BackPropagation)

    def make_optimizer(self, named: Iterable[Named], place: Place) -> torch.optim.Optimizer:
        """A stage's optimizer.

        Raises:
            UserError: what was given makes none, or one that leaves parameters out.
        """
        named = list(named)
        optimizer: Any = (
            self.optimizer(named, place) if takes_two(self.optimizer) else self.optimizer(named)
        )
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError(
                f"optimizer: it makes {type(optimizer).__name__}: give a function of (name, parameter) "
                f"pairs that returns a torch.optim.Optimizer"
            )
        taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
        names = [name for name, parameter in named if id(parameter) not in taken]
        if names or len(taken) != len(named):
            what = (
                f"leaves out {', '.join(names[:3])}"
                if names
                else "has parameters that are not the stage's"
            )
            raise UserError(
                f"optimizer: that of stage {place.number} {what}: give every parameter to one group (set "
                f"requires_grad=False for what is not to be trained, or a learning rate of 0)"
            )
        return optimizer


def check_schedule(scheduler: object) -> None:
    """Refuse what cannot be stepped behind every update.

    Raises:
        UserError: it is no learning-rate scheduler, or one that wants a metric.
    """
    if isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau):
        return
    raise UserError(
        f"schedule: it makes {type(scheduler).__name__}: give a function of an optimizer and the number "
        f"of updates that returns a torch.optim.lr_scheduler.LRScheduler, stepped behind every update"
    )


def takes_two(function: Callable[..., Any]) -> bool:
    """Whether a function has a second positional parameter without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(wanted) >= 2
