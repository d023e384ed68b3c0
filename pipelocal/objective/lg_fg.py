"""LG-FG: forward gradients of many local losses (Ren et al. 2023, arXiv 2210.03310).

No backward pass runs, not even within a stage: its gradients are guessed from directional derivatives along
random noise, which forward-mode AD gives. How is in :mod:`pipelocal.forward_gradient`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelocal.errors import UserError
from pipelocal.objective.greedy import ForwardRecipe, Greedy
from pipelocal.objective.local import Objective, Place
from pipelocal.objective.options import check_words

MOST_PASSES = 1000


@dataclass(frozen=True, kw_only=True)
class LGFG(ForwardRecipe):
    """Forward gradients of a stage's local losses; its options.

    Args:
        perturb: what the noise is added to: each layer's output (``activity``: noise of its own for every
            sample, token and channel) or the ``weight``s (the same for the whole batch).
        noise: ``gaussian`` or ``rademacher`` (1 or -1), which varies less.
        passes: directions whose gradients are averaged in each batch.
        losses: ``parts``: each token and group of channels of the stage's output has a loss of its own, so
            that noise elsewhere does not disturb it; or ``one`` for all. All have the same value.

    Raises:
        UserError: an option is none of these.
    """

    perturb: Literal["activity", "weight"] = "activity"
    noise: Literal["gaussian", "rademacher"] = "gaussian"
    passes: int = 1
    losses: Literal["parts", "one"] = "parts"

    def __post_init__(self) -> None:
        check_words(self)
        if type(self.passes) is not int or not 1 <= self.passes <= MOST_PASSES:
            raise UserError(
                f"LGFG: passes={self.passes}: give a whole number from 1 to {MOST_PASSES}"
            )

    def for_stage(self, place: Place) -> Objective:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`."""
        del place
        return ForwardGradient(self)


class ForwardGradient(Greedy):
    """The local loss, whose gradients the stage forms without a backward pass."""

    def __init__(self, options: LGFG) -> None:
        self.options = options
