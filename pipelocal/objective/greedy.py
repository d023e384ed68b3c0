"""The local loss alone, which is also the base of user-defined objectives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pipelocal.errors import UserError
from pipelocal.models.unit import Shape
from pipelocal.objective.delta_encoding import Summary, whole_delta
from pipelocal.objective.local import LocalPass, Objective, ObjectiveRecipe, Place, Relay
from pipelocal.objective.options import is_recipe_class
from pipelocal.objective.residual import Residual
from pipelocal.objective.way_back import WayBack


class ForwardRecipe:
    """Base of recipes by whose objectives no output gradient is sent."""

    reconcile_every = None

    def delta_encoding(self, shape: Shape, seed: int) -> Summary:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`; delta would be sent unchanged."""
        del seed
        return whole_delta(shape)


class Greedy:
    """The local loss alone. With a single stage this is ordinary back-propagation.

    This is also the base class of user-defined objectives. One that also inherits ``nn.Module`` may own
    parameters, which its stage's optimizer trains; :meth:`loss` may add terms to the task's loss, and may
    set :attr:`figures` to report. Each stage gets a copy of an objective given as an object; a class is
    called for each stage, with its :class:`Place`.
    """

    wants_delta = False
    reconcile_every: int | None = None
    figure_names: tuple[str, ...] = ()
    """Names of the :attr:`figures` that :meth:`loss` sets on every batch."""
    _delta: Tensor | None = None

    def for_stage(self, place: Place) -> Objective:
        """See :class:`ObjectiveRecipe`."""
        del place
        return copy.deepcopy(self)

    def delta_encoding(self, shape: Shape, seed: int) -> Summary:
        """See :class:`ObjectiveRecipe`; sends delta unchanged."""
        del seed
        return whole_delta(shape)

    def loss(self, local: LocalPass, out: Tensor) -> Tensor:
        """See :class:`Objective`.

        Args:
            local: the batch: input, target, head, and ``task_loss``.
            out: output of the body ``[B, ...]``; the loss's gradient there is delta.
        """
        assert local.task_loss is not None
        return local.task_loss(out)

    @property
    def figures(self) -> dict[str, Tensor]:
        """Scalars of the batch by name, set by :meth:`loss` and reported as means."""
        found: dict[str, Tensor] = self.__dict__.setdefault("_figures", {})
        return found

    def head_backward(self, local: LocalPass) -> tuple[Tensor, Tensor]:
        """See :class:`Objective`."""
        feature = local.out.detach().requires_grad_()
        loss = self.loss(local, feature)
        loss.backward()  # type: ignore[no-untyped-call]
        if feature.grad is None:
            raise UserError(
                "no gradient comes through the head, which detaches its input, or is a copy of units that "
                "do: choose another --head, such as linear"
            )
        self._delta = feature.grad
        return loss.detach(), feature.grad

    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> Residual | None:
        """See :class:`Objective`."""
        assert previous_delta is None, "greedy stages do not ask for delta"
        delta, self._delta = self._delta, None
        if local.out.requires_grad:
            local.out.backward(delta)  # type: ignore[no-untyped-call]
        return None


class BackPropagation(Greedy):
    """Ordinary back-propagation through the uncut model, in one process: the baseline."""

    uncut = True


@dataclass(frozen=True)
class EachStage:
    """A recipe that calls a function or class to make each stage's objective."""

    make: Callable[[Place], Objective]
    reconcile_every: int | None
    relays: Callable[[int], Sequence[Relay]] = lambda _stages: ()
    """See :class:`~pipelocal.objective.local.ObjectiveRecipe`; a static method of the class."""
    way_back: WayBack | None = None
    """Likewise; an attribute of the class."""

    def for_stage(self, place: Place) -> Objective:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`."""
        return self.make(place)

    def delta_encoding(self, shape: Shape, seed: int) -> Summary:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`; sends delta unchanged."""
        del seed
        return whole_delta(shape)


def as_recipe(objective: Any) -> ObjectiveRecipe:
    """Make a recipe of a user's objective: a recipe or a class of them, an objective, a class, or a function.

    A class of recipes is called with nothing; any other class or function with each stage's place.

    Raises:
        UserError: it is none of these.
    """
    if is_recipe_class(objective) or objective is Greedy:
        objective = objective()
    if not isinstance(objective, type) and hasattr(objective, "for_stage"):
        given: ObjectiveRecipe = objective
        return given
    if not callable(objective):
        raise UserError(
            f"objective: {type(objective).__name__} is none: give pipelocal.Greedy(), pipelocal.SGR(), or a "
            f"class or function that is called with a stage's Place and returns its objective"
        )
    every = getattr(objective, "reconcile_every", None)
    if every is None and getattr(objective, "wants_delta", False):
        every = 1
    recipe = EachStage(objective, every, way_back=getattr(objective, "way_back", None))
    asked = getattr(objective, "relays", None)
    return recipe if asked is None else replace(recipe, relays=asked)
