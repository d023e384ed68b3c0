"""The input and the result of a simulation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipelocal.transport.window import MOST_SLOTS, Window, slots_needed


@dataclass(frozen=True, kw_only=True)
class StageSeconds:
    """The times of one stage for one global batch, in seconds."""

    forward: float
    """Forward pass of the body."""
    head: float
    """Both passes of the auxiliary head, or on the last stage of the classifier."""
    input_gradient: float
    """The part of the body's backward pass that computes gradients of inputs."""
    first_input_gradient: float
    """The part of :attr:`input_gradient` for the stage's own input, skipped if not needed."""
    weight_gradient: float
    """The rest of the backward pass."""
    reconcile: float
    """Reconciliation, including the gradient at the stage's own input if computed only for it."""
    update: float

    @property
    def total(self) -> float:
        """All of a batch."""
        seconds: dict[str, float] = vars(self)
        return sum(seconds.values()) - self.first_input_gradient


@dataclass(frozen=True, kw_only=True)
class LinkSpeed:
    """The link between neighbours; each direction is separate, and overlaps with compute."""

    bytes_per_s: float
    latency_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """The job to simulate.

    Args:
        stages: the stage of each rank.
        x_bytes: bytes of each stage's output for a global batch; the last one's is not sent.
        link: the link between neighbours.
        micro_batches: number of parts into which GPipe, 1F1B and ZB-H1 split a batch.
        delta_bytes: bytes of output gradients that pipelocal also sends, from each stage.
        window: batches that a pipelocal stage may have sent before the next one receives them; ``auto`` for
            as many as the link needs.
    """

    stages: list[StageSeconds]
    x_bytes: list[int]
    link: LinkSpeed
    micro_batches: int
    delta_bytes: list[float]
    window: Window

    @property
    def slots(self) -> int:
        """Batches under way on an edge."""
        if self.window != "auto":
            return self.window
        transfer_s = max(self.x_bytes) / self.link.bytes_per_s
        stage_s = max(stage.total for stage in self.stages)
        batch_s = max(transfer_s, stage_s)
        round_s = transfer_s + self.link.latency_s + stage_s
        return min(MOST_SLOTS, slots_needed(round_s, batch_s)) if batch_s else MOST_SLOTS

    def with_batch(self, factor: float) -> Job:
        """Return the same job with a global batch ``factor`` times as large."""
        stages = [
            replace(StageSeconds(**{k: v * factor for k, v in vars(s).items()}), update=s.update)
            for s in self.stages
        ]
        x_bytes = [round(size * factor) for size in self.x_bytes]
        delta_bytes = [size * factor for size in self.delta_bytes]
        return replace(self, stages=stages, x_bytes=x_bytes, delta_bytes=delta_bytes)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a simulated run."""

    schedule: str
    seconds_per_batch: float
    """Seconds per batch in the long run."""
    utilisation: float
    """Share of the time that ranks compute, on average and in the long run; heads and reconciliation
    count as compute."""
    fill_s: float
    """Seconds until the last rank has work. pipelocal's pipeline is filled once, at the start of
    the training; the others' in every batch, which :attr:`seconds_per_batch` includes."""
    activations: float
    """Peak activations of the fullest rank, in global batches of one stage."""
