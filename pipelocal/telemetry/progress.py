"""The latest reports of a run's stages, and its overall progress."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelocal.telemetry.formats import format_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRow:
    """The latest report of one stage. None means "not known (yet)"."""

    stage: int
    """Number of the stage, from 1."""
    rank: int | str
    """Rank that runs the stage, from 0; with replicas, such as ``1,2``."""
    units: str
    """Units of the model that the stage holds, e.g. ``stem..block1``."""
    step: int = 0
    """Batches that the stage has trained on."""
    loss: float | None = None
    """Local training loss."""
    metric: float | None = None
    """The task's first metric in training."""
    eval_metric: float | None = None
    """The same in the last evaluation."""
    further: Mapping[str, float | None] = field(default_factory=dict)
    """Other figures, by the heading of their column: the agreement of reconciled stages, and the task's
    further metrics in the last evaluation."""
    samples_per_second: float | None = None
    busy_fraction: float | None = None
    """Share of the time in which the stage computed instead of waiting, 0 to 1."""
    peak_memory_bytes: int | None = None
    frozen: bool = False
    """Whether the stage no longer trains, and only feeds the next one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Progress of the whole run."""

    step: int
    """Batches done, of ``total_steps``."""
    total_steps: int
    epoch: int
    """The current epoch, from 1 to ``epochs``."""
    epochs: int
    phase: str
    """``train`` or ``eval``."""
    elapsed_s: float
    """Seconds since this process began, at ``first_step``."""
    metric: str = "accuracy"
    """Name of the task's first metric."""
    first_step: int = 0
    """The step at which this process began; not 0 in a resumed run."""

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the mean rate so far; None before there is a rate."""
        steps_left = self.total_steps - self.step
        if steps_left <= 0:
            return 0.0
        steps_done = self.step - self.first_step
        if steps_done <= 0 or self.elapsed_s <= 0:
            return None
        return self.elapsed_s / steps_done * steps_left


def progress_text(progress: Progress, *, width: int | None = None) -> str:
    """Format progress, for example ``step 120/230  epoch 2/10  12.3 s left``.

    Args:
        progress: what is told.
        width: columns that there are; if there are few, the epoch and then the rest is left out.
    """
    epoch = f"epoch {progress.epoch}/{progress.epochs}"
    parts = [f"step {progress.step}/{progress.total_steps}", epoch]
    if progress.phase != "train":
        parts.append(progress.phase)
    seconds_left = progress.eta_s
    if seconds_left == 0:
        parts.append(f"{format_seconds(progress.elapsed_s)} elapsed")
    elif seconds_left is not None:
        parts.append(f"{format_seconds(seconds_left)} left")
    if width is not None and len("  ".join(parts)) > width:
        parts.remove(epoch)
        while len("  ".join(parts)) > width and len(parts) > 1:
            parts.pop()
    return "  ".join(parts)
