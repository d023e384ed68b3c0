"""Periodic guidance: every so many batches the bodies learn from the global loss (PGL, arXiv 2208.00821).

::

    batch 1 .. T-1   every stage by its own local loss, as greedy
    batch T          x > [stage 1] > [stage 2] > ... > [stage K] > the global loss
                            < g_1 <        < g_2 <  ...  < g_K-1            (g_k: its gradient at x_k)

The paper's body was not read. Ours are the period in batches, that a guided batch trains every body by the
global loss alone and every auxiliary head still by its own, and that one optimizer serves both kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipelocal.errors import UserError
from pipelocal.objective.greedy import ForwardRecipe, Greedy
from pipelocal.objective.local import LocalPass, Objective, Place
from pipelocal.objective.residual import Residual
from pipelocal.objective.way_back import WayBack


@dataclass(frozen=True, kw_only=True)
class PGL(ForwardRecipe):
    """Greedy training with periodic guidance by the global loss.

    With ``every=1`` it is back-propagation over ranks, with more than the run has batches it is greedy.

    Args:
        every: interval in batches between two that are guided.

    Raises:
        UserError: the interval is below 1.
    """

    every: int = 8

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"PGL: every={self.every}: give a number of batches of at least 1")

    @property
    def way_back(self) -> WayBack:
        """See :class:`~pipelocal.objective.way_back.WayBack`."""
        return WayBack(name="guidance", every=self.every, passed_on=True)

    def for_stage(self, place: Place) -> Objective:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`."""
        return Guided(self.way_back, place)


class Guided(Greedy):
    """A stage whose body learns from the global loss in batches that carry its gradient back.

    Args:
        way_back: says which these are.
        place: of the stage; the last one's own loss is the global one.
    """

    def __init__(self, way_back: WayBack, place: Place) -> None:
        self._way_back = way_back
        self._first = place.number == 1
        self._last = place.number == place.stages

    def wants_input_gradient(self, step: int) -> bool:
        """See :class:`~pipelocal.objective.way_back.SendsBack`."""
        return self._way_back.carries(step) and not self._first

    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> Residual | None:
        """See :class:`Objective`; the body of a guided batch waits for what comes back."""
        if self._way_back.carries(local.step) and not self._last:
            self._delta = None
            return None
        return super().body_backward(local, previous_delta)

    def take_back(self, local: LocalPass, returned: Tensor) -> None:
        """See :class:`~pipelocal.objective.way_back.SendsBack`."""
        if local.out.requires_grad:
            local.out.backward(returned)  # type: ignore[no-untyped-call]

    def given_back(self, local: LocalPass) -> Tensor:
        """See :class:`~pipelocal.objective.way_back.SendsBack`."""
        return local.taken_input_gradient()
