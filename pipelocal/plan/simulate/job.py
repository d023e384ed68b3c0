"""What is simulated, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class StageSeconds:
    """Of one stage and one global batch."""

    forward: float
    """Of the body."""
    head: float
    """Both passes of the head; of the auxiliary one, or on the last stage of the classifier."""
    input_gradient: float
    """The part of the body's backward pass that makes gradients of inputs."""
    first_input_gradient: float
    """The part of that which makes the gradient at the stage's own input; spared where nobody wants
    it."""
    weight_gradient: float
    """The rest of the backward pass."""
    reconcile: float
    """With the gradient at the stage's own input, as far as it is made for it."""
    update: float


@dataclass(frozen=True, kw_only=True)
class LinkSpeed:
    """Between neighbours; each direction by itself, and beside the compute."""

    bytes_per_s: float
    latency_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained.

    Args:
        stages: one for each rank.
        x_bytes: of each stage's output for a global batch; the last one's is not sent.
        link: between every two neighbours.
        micro_batches: into which GPipe, 1F1B and ZB-H1 split a batch.
        delta_bytes: what pipelocal sends beside x of output gradients, from each stage.
        window: batches that a pipelocal stage may have sent and the next one not yet received.
    """

    stages: list[StageSeconds]
    x_bytes: list[int]
    link: LinkSpeed
    micro_batches: int
    delta_bytes: list[float]
    window: int

    def with_batch(self, factor: float) -> Job:
        """The same with a global batch that is so many times as large."""
        stages = [
            replace(StageSeconds(**{k: v * factor for k, v in vars(s).items()}), update=s.update)
            for s in self.stages
        ]
        x_bytes = [round(size * factor) for size in self.x_bytes]
        delta_bytes = [size * factor for size in self.delta_bytes]
        return replace(self, stages=stages, x_bytes=x_bytes, delta_bytes=delta_bytes)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of a simulated run."""

    schedule: str
    seconds_per_batch: float
    """In the long run."""
    utilisation: float
    """Share of the time that ranks compute, on average and in the long run; heads and reconciliation
    count as compute."""
    fill_s: float
    """Until the last rank has something to do. pipelocal's pipeline is filled once, at the start of
    the training; the others' in every batch, which :attr:`seconds_per_batch` holds."""
    activations: float
    """Global batches of one stage's activations that the fullest rank holds at its peak."""
