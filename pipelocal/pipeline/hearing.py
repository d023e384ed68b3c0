"""Which heads are heard: that of a stage which is frozen from the first batch never learns anything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Hearing:
    """Which heads are heard in training and evaluation, as a stage sees it."""

    own: bool = True
    """Whether this stage's own head is; otherwise it has neither a loss nor a vote."""
    heads: int | None = None
    """Number of heads heard up to this stage's; None for those of all stages."""
    delta: bool = True
    """Whether its output gradient is of use to the next stage."""

    @property
    def runs_head(self) -> bool:
        """Whether training needs this stage's head at all."""
        return self.own or self.delta


EVERYBODY = Hearing()
