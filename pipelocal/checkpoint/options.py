"""What is saved on the way, and what is gone on with."""

from __future__ import annotations

from dataclasses import dataclass

from pipelocal.options import BATCHES, MOST_BATCHES, Limits, option, positive


@dataclass(frozen=True, kw_only=True)
class SnapshotOptions:
    """What is saved on the way, and what is gone on with."""

    snapshot_every: int | None = option(None, limits=BATCHES, of_the_bits=False)
    """Save a snapshot after every so many batches too, without stopping the stream."""
    snapshot_minutes: float = option(5.0, limits=positive(1e6), of_the_bits=False)
    """Save a snapshot whenever so many minutes have passed. One is also saved behind an evaluation, where
    that costs less than a hundredth of the time, and when the run is told to end."""
    keep_snapshots: int = option(1, limits=Limits(0, MOST_BATCHES), of_the_bits=False)
    """How many of the newest snapshots stay, beside the best one by the last head's evaluation; 0 to take
    none at all: a run that is stopped then leaves nothing."""
    resume: str = option("auto", of_the_bits=False)
    """auto (go on with the unfinished run in --out, from its newest good snapshot), never, or a run or
    snapshot folder from which a new run begins, with other options if wanted."""
    accept_changes: bool = option(False, of_the_bits=False)
    """Go on with a run although its model's code or its data are not what they were when it began."""

    @property
    def takes_snapshots(self) -> bool:
        """Whether markers may come on the stream."""
        return self.keep_snapshots > 0
