"""What a stage minimises: its local loss, and what an objective of one's own adds to it.

Notation for stage k, with input ``x``, output ``out`` and local loss ``l``::

    delta = d l / d out     the output gradient; it travels forward with the output
    eta   = d l / d x       the input gradient; it stays on the stage

An objective works in two steps, because a stage sends ``delta`` on before it does the rest:
:meth:`Objective.head_backward` finds ``delta``, :meth:`Objective.body_backward` completes the
gradients of all parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from pipelocal.models.chain import Shape
from pipelocal.objective.delta_encoding import Summary
from pipelocal.objective.residual import Residual

AddGradientsAt = Callable[[Tensor, Tensor | None, Tensor], None]
"""Adds to the parameters' ``.grad`` a factor, a scalar, times the gradient of the local loss at an input
``[b, ...]``. With rows ``[b]`` of the batch, whose labels are meant, or None for all. Called with input,
rows and factor. Random numbers are the batch's own, and no buffer moves, such as BatchNorm's running
statistics."""

LossOf = Callable[[Tensor], Tensor]
"""The task's loss, a scalar mean over the batch, as a function of the body's output."""


@dataclass(kw_only=True)
class LocalPass:
    """A stage's forward pass on one batch."""

    x: Tensor
    """Input ``[B, ...]``, a leaf; requires a gradient where the objective wants eta."""
    out: Tensor
    """Output ``[B, ...]`` of the body, still attached to its graph."""
    add_gradients_at: AddGradientsAt
    """Gradients of the local loss at another input."""
    parameters: Callable[[], Iterable[nn.Parameter]]
    """Those of body, head and objective."""
    step: int
    """Batches that the stage was trained on before."""
    seed: int
    """For what the objective draws on this batch."""
    mixed: bool = False
    """Whether the pass ran under autocast; ``add_gradients_at`` never does."""
    target: Tensor | None = None
    """What the batch is to be answered by, from :meth:`Objective.head_backward` on."""
    head: nn.Module | None = None
    """The stage's head, likewise."""
    task_loss: LossOf | None = None
    """Head and task's loss, as a function of the body's output, likewise."""

    @property
    def reconciled(self) -> bool:
        """Whether delta of the stage before will come."""
        return self.x.requires_grad


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a stage stands, which is all that an objective need know when it is made."""

    number: int
    """From 1."""
    stages: int
    input_shape: Shape
    """Of one row, without the batch dimension."""
    output_shape: Shape
    total_steps: int
    """Training batches of the run."""
    previous_delta: Summary | None = None
    """How delta of the stage before travels."""


class Objective(Protocol):
    """What one stage minimises, and how."""

    wants_delta: bool
    """Whether the stage before must send its output gradient along."""

    def loss(self, local: LocalPass, out: Tensor) -> Tensor:
        """What is minimised, a scalar: the task's loss at an output of the body, and what is added to it."""

    def head_backward(self, local: LocalPass) -> tuple[Tensor, Tensor]:
        """The loss (scalar) and delta ``[B, ...]``, both detached."""

    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> Residual | None:
        """Complete the parameters' gradients; what is left to reconcile, if delta was given.

        Args:
            local: what :meth:`head_backward` was given.
            previous_delta: output gradient ``[B, ...]`` of the stage before, of x's shape; None on a
                batch that is not reconciled.
        """


class ObjectiveRecipe(Protocol):
    """Makes every stage's objective; what a whole network is trained by."""

    @property
    def reconcile_every(self) -> int | None:
        """In every so many batches stages send their output gradients along; None for never."""

    def for_stage(self, place: Place) -> Objective:
        """A new one, of the stage that stands there."""

    def delta_encoding(self, shape: Shape, seed: int) -> Summary:
        """How the output gradient of a stage travels.

        Args:
            shape: of one row of the stage's output.
            seed: both ends of the edge have the same.
        """
