"""What every stage but the first sends back to the one before, if anything.

Most runs have no way back. What has one, an objective or a head, declares it, so that a run can say and count
what flows back::

    from its own loss          stage k+1: forward, loss, backward > eta         stage k adds eta's share
    from what came back to it  stage K: forward, loss, backward > g > stage K-1: backward > g > stage K-2 ...
    weights, after an update   stage K > its weights        used by stage K-1 a period later, and passed on

Which batches carry it, and which use it, is decided by their numbers alone, so K ranks equal one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from pipelocal.objective.local import LocalPass, Objective, ObjectiveRecipe
from pipelocal.system.tensor_kind import TensorKind


@dataclass(frozen=True, kw_only=True)
class WayBack:
    """What every stage but the first sends back, by default one tensor of its input's shape and dtype.

    Such a tensor is used by the stage before in the batch that carries it. Weights are sent after an update,
    by the last stage first, used one period later, and passed on with that.
    """

    name: str
    """Of the message, such as ``eta``, or of what has the weights."""
    every: int = 1
    """Batches between two that carry it; the first is batch number ``every``, counted from 1."""
    passed_on: bool = False
    """Whether a stage's own depends on what comes back to it, so that it has to wait for that first."""
    weights: tuple[TensorKind, ...] = ()
    """The last stage's tensors that are sent instead; empty for none."""

    def carries(self, step: int, update_at: int | None = None) -> bool:
        """Return whether the batch after this many training batches of the run carries it.

        Args:
            step: training batches of the run before.
            update_at: training batches after it, if it is an update of several batches that carries it.
        """
        after = step + 1 if update_at is None else update_at
        return after // self.every > step // self.every


@runtime_checkable
class SendsBack(Objective, Protocol):
    """The objective of a stage that takes something back, and gives something back.

    Called in this order on a batch that carries it, after ``body_backward``; :meth:`given_back` comes first
    if it does not depend on what comes back. The first stage gives nothing, the last one takes nothing.
    """

    def wants_input_gradient(self, step: int) -> bool:
        """Return whether the batch after this many training batches needs a gradient at ``local.x``."""

    def take_back(self, local: LocalPass, returned: Tensor) -> None:
        """Add to the parameters' gradients what follows from a tensor of the output's shape ``[B, ...]``."""

    def given_back(self, local: LocalPass) -> Tensor:
        """Return a tensor of the input's shape ``[B, ...]``, detached."""


def way_back_of(recipe: ObjectiveRecipe) -> WayBack | None:
    """Return what an objective sends back; None for nothing."""
    way: WayBack | None = getattr(recipe, "way_back", None)
    return way
