"""How long a run trains, and when it is evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from pipelocal.options import BATCHES, Limits, option


@dataclass(frozen=True, kw_only=True)
class LengthOptions:
    """How long a run trains, and when it is evaluated."""

    epochs: int = option(20, limits=Limits(1, 10**9))
    """Passes over the training data."""
    max_steps: int | None = option(None, limits=BATCHES)
    """Stop after this many batches, also within an epoch."""
    evaluate_every: int = option(1, limits=BATCHES)
    """Evaluate after every so many epochs; the end is always evaluated."""
    accumulate: int = option(1, limits=BATCHES)
    """Batches whose mean gradient makes an update; what --batch-size says are then micro-batches, and no
    stage holds more than one. The last update of an epoch takes what is left."""
