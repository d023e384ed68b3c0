"""Context supply as a recipe for all stages (ContSup, arXiv 2312.07636)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipelocal.errors import UserError
from pipelocal.models.chain import Chain
from pipelocal.models.context import Supply, supplied
from pipelocal.objective.greedy import ForwardRecipe, Greedy
from pipelocal.objective.local import Objective, Place


@dataclass(frozen=True, kw_only=True)
class ContSup(ForwardRecipe):
    """Context supply: the local loss alone, of stages that see again what lies before their input.

    Encoders of the context stand before the body of every stage but the first, and stay part of the trained
    network; see :mod:`pipelocal.models.context`.

    Args:
        context: ``E``, the image; ``R1``, ``R2``, ..., the inputs of so many stages before; or ``R1E``,
            ``R2E``, ..., both.
        control: give the encoders each stage's own input instead: as many parameters, and no context.

    Raises:
        UserError: there is no such context.
    """

    context: str = "R1E"
    control: bool = False

    def __post_init__(self) -> None:
        _ = self.supply

    @property
    def supply(self) -> Supply:
        """What is supplied to each stage.

        Raises:
            UserError: there is no such context.
        """
        found = re.fullmatch(r"(?:R([1-9][0-9]{0,5}))?(E?)", self.context)
        if found is None or not self.context:
            raise UserError(
                f"ContSup: context={self.context}: choose E (the image), R1, R2, ... (the inputs of so many "
                f"stages before) or R1E, R2E, ... (both)"
            )
        inputs, image = found.groups()
        return Supply(image=bool(image), inputs=int(inputs or 0), control=self.control)

    def check_stages(self, stages: int) -> None:
        """Refuse a single stage.

        Raises:
            UserError: there is nothing to supply.
        """
        if stages == 1:
            raise UserError(
                "ContSup supplies the stages behind the first, and there is one stage: give --stages 2 or "
                "more, or choose --objective greedy"
            )

    def for_stage(self, place: Place) -> Objective:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`."""
        del place
        return Greedy()

    def network(self, chain: Chain, starts: Sequence[int]) -> Chain:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`."""
        return supplied(chain, starts, self.supply)
