"""The recipe from which every stage of a network is built."""

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
from pipelocal.heads.guided import guided_every
from pipelocal.objective import ObjectiveRecipe, Place, way_back_of
from pipelocal.references.importing import calling
from pipelocal.stage.freezing import Freezing
from pipelocal.stage.options import ComputeOptions
from pipelocal.tasks import Task

Named = tuple[str, nn.Parameter]

OptimizerBuilder = Callable[..., torch.optim.Optimizer]
"""Called with the stage's ``(name, parameter)`` pairs in the model's order (the model's own names; a head's
begin with ``head/``, an objective's with ``objective/``), and with the stage's
:class:`~pipelocal.objective.local.Place` if it takes a second argument."""

ScheduleBuilder = Callable[[torch.optim.Optimizer, int], LRScheduler]
"""Called with a stage's optimizer and the total number of updates. Its result is stepped
once after every update, but a :class:`~pipelocal.stage.lr_schedule.BatchLR` once for every batch."""

FreezingOf = Callable[[int], dict[int, Freezing]]
"""Called with the number of stages; returns what decides when a stage is frozen, by stage number."""


def never_frozen(_stages: int) -> dict[int, Freezing]:
    """Freeze no stage."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Builders of the parts of every stage; independent of ranks and cuts.

    Args:
        task: what the network learns.
        head: builds the auxiliary heads.
        head_task: whose loss they train by; None for the task itself. Figures and evaluations are the task's.
        objective: makes the objectives.
        optimizer: makes the optimizers.
        schedule: makes the learning-rate schedules; None for constant rates.
        transport_penalty: weight of the transport penalty in every stage's loss; 0 for none.
        clip: maximum L2 norm of a stage's gradient in an update; None for no limit.
        ema: decay of a moving average of the weights; None for no average.
        freezing: decides when stages are frozen.
        seed: seed of all random numbers.
        compute: how stages compute.
    """

    task: Task
    head: HeadBuilder
    objective: ObjectiveRecipe
    optimizer: OptimizerBuilder
    head_task: Task | None = None
    schedule: ScheduleBuilder | None = None
    counts_batches: bool = False
    """Whether ``schedule`` is called with the number of batches instead of updates."""
    transport_penalty: float = 0.0
    clip: float | None = None
    ema: float | None = None
    freezing: FreezingOf = field(default=never_frozen)
    seed: int = 0
    compute: ComputeOptions = field(default_factory=ComputeOptions)

    @property
    def uncut(self) -> bool:
        """Whether the model is trained as a whole, in one process."""
        return bool(getattr(self.objective, "uncut", False))

    @property
    def sends_back(self) -> bool:
        """Whether stages send something back: the objective's, or weights to guided heads."""
        return way_back_of(self.objective) is not None or guided_every(self.head) is not None

    def make_optimizer(self, named: Iterable[Named], place: Place) -> torch.optim.Optimizer:
        """Make a stage's optimizer.

        Raises:
            UserError: the builder returns no optimizer, or one that omits parameters.
        """
        named = list(named)
        with calling("optimizer"):
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
    """Refuse a scheduler that cannot be stepped after every update.

    Raises:
        UserError: it is not a learning-rate scheduler, or it needs a metric.
    """
    if isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau):
        return
    raise UserError(
        f"schedule: it makes {type(scheduler).__name__}: give a function of an optimizer and the number "
        f"of updates that returns a torch.optim.lr_scheduler.LRScheduler, stepped behind every update"
    )


def takes_two(function: Callable[..., Any]) -> bool:
    """Return whether a function has a second positional parameter without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(wanted) >= 2
