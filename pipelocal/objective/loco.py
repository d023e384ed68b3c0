"""Overlapping local blocks: a stage also learns from the next stage's loss (LoCo, arXiv 2008.01342).

::

    x > [stage k] > x_k > [stage k+1] > x_k+1 > [stage k+2]
           l_k     < eta_k+1    l_k+1   < eta_k+2    l_k+2         eta_k+1 = d l_k+1 / d x_k

Stage k's gradient at its output is ``delta_k + eta_k+1``: its own loss's and the next one's alone, which is
one hop, and no chain over the stages: what stage k+1 sends back does not depend on what comes back to it. It
is the eta that reconciliation compares with delta, sent back instead. Blocks of two stages overlap so in one.

The paper's body was not read; a co-author's released code weighs the own loss twice (``own_weight=2``).
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
class LoCo(ForwardRecipe):
    """Greedy training whose blocks overlap: each body learns from its own and from the next stage's loss.

    Args:
        own_weight: weight of a stage's own loss in its body's gradient, beside the next stage's; the last
            stage's is 1. With 0 a body but the last learns from the next stage's loss alone.

    Raises:
        UserError: the weight is negative or not finite.
    """

    own_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.own_weight < float("inf"):
            raise UserError(f"LoCo: own_weight={self.own_weight}: give a number of at least 0")

    @property
    def way_back(self) -> WayBack:
        """See :class:`~pipelocal.objective.way_back.WayBack`."""
        return WayBack(name="eta")

    def for_stage(self, place: Place) -> Objective:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`."""
        return Overlapping(self.own_weight, place)


class Overlapping(Greedy):
    """A stage whose body also learns from the next stage's loss.

    Args:
        own_weight: weight of its own loss.
        place: of the stage.
    """

    def __init__(self, own_weight: float, place: Place) -> None:
        self._own_weight = own_weight
        self._first = place.number == 1
        self._last = place.number == place.stages

    def wants_input_gradient(self, step: int) -> bool:
        """See :class:`~pipelocal.objective.way_back.SendsBack`."""
        del step
        return not self._first

    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> Residual | None:
        """See :class:`Objective`; all bodies but the last wait for what comes back."""
        return super().body_backward(local, previous_delta) if self._last else None

    def take_back(self, local: LocalPass, returned: Tensor) -> None:
        """See :class:`~pipelocal.objective.way_back.SendsBack`."""
        delta, self._delta = self._delta, None
        assert delta is not None, "head_backward comes first"
        if local.out.requires_grad:
            local.out.backward(self._own_weight * delta + returned)  # type: ignore[no-untyped-call]

    def given_back(self, local: LocalPass) -> Tensor:
        """See :class:`~pipelocal.objective.way_back.SendsBack`; eta of the own loss alone."""
        if not self._last:
            # Of the input alone; the parameters' gradients wait for what comes back.
            local.out.backward(self._delta, retain_graph=True, inputs=[local.x])  # type: ignore[no-untyped-call]
        return local.taken_input_gradient()
