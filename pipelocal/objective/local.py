"""The interface of objectives: what a stage minimises, and how it computes the gradients.

Notation for stage k, with input ``x``, output ``out`` and local loss ``l``::

    delta = d l / d out     the output gradient; it is sent forward with the output
    eta   = d l / d x       the input gradient; it stays on the stage

An objective works in two steps, because a stage sends ``delta`` before it does the rest:
:meth:`Objective.head_backward` computes ``delta``, :meth:`Objective.body_backward` completes the
gradients of all parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models.chain import Chain
from pipelocal.models.payload import Payload
from pipelocal.models.unit import Shape
from pipelocal.objective.delta_encoding import Summary
from pipelocal.objective.residual import Residual
from pipelocal.tasks import Loss, LossFunction

AddGradientsAt = Callable[[Tensor, Tensor | None, Tensor], None]
"""Called with an input ``[b, ...]``, rows ``[b]`` and a scalar factor; adds the factor times the local loss's
gradient at that input to the parameters' ``.grad``. The rows select the batch's labels; None selects all.
It uses the batch's own random numbers, and updates no buffer, such as BatchNorm's running statistics."""

LossOf = Callable[[Tensor], Tensor]
"""Called with the body's output; returns the task's loss, a scalar mean over the batch."""


@dataclass(kw_only=True)
class LocalPass:
    """A stage's forward pass on one batch."""

    x: Tensor
    """Input ``[B, ...]``, a leaf; requires a gradient if the objective needs eta."""
    out: Tensor
    """Output ``[B, ...]`` of the body, still attached to its graph."""
    add_gradients_at: AddGradientsAt
    """Adds gradients of the local loss at another input."""
    parameters: Callable[[], Iterable[nn.Parameter]]
    """Yields the parameters of body, head and objective."""
    step: int
    """Number of batches that the stage trained on before."""
    seed: int
    """Seed for the objective's random numbers on this batch."""
    mixed: bool = False
    """Whether the pass ran under autocast; ``add_gradients_at`` never does."""
    target: Tensor | None = None
    """The batch's targets; available from :meth:`Objective.head_backward` on."""
    head: nn.Module | None = None
    """The stage's head; available from :meth:`Objective.head_backward` on."""
    relayed: Mapping[str, Tensor] = field(default_factory=dict)
    """By name, what the objective has relayed to this stage; see :class:`Relay`."""
    inner: Mapping[int, Payload] = field(default_factory=dict)
    """What units within the body passed on, with its graph: by number, from 1, those that an objective names
    in its attribute ``watches``."""
    task_loss: LossOf | None = None
    """Applies head and task loss to an output; available from :meth:`Objective.head_backward` on."""
    loss_function: Callable[[Tensor, Tensor], Loss] | None = None
    """The task's loss of a head's output and targets, of any rows; available likewise."""
    reconciled: bool = False
    """Whether delta of the stage before will be received."""

    def taken_input_gradient(self) -> Tensor:
        """Return the gradient at :attr:`x`, and remove it from there."""
        gradient, self.x.grad = self.x.grad, None
        if gradient is None:
            raise UserError(
                "no gradient comes through the units to their input, which one of them detaches: the "
                "objective wants it, so put the cut elsewhere, or choose --objective greedy"
            )
        return gradient


@dataclass(frozen=True, kw_only=True)
class Relay:
    """A main output that later stages see too: the model's input, or what an earlier stage made.

    The stage right behind has it as its input; each stage passes it on to the next, in training and in
    evaluation::

        Relay(name="image", of=0, until=3)      x > [stage 1] > x, image > [stage 2] > x, image > [stage 3]
    """

    name: str
    of: int
    """Number of the stage that makes it; 0 for the model's main input."""
    until: int
    """Number of the last stage that sees it."""

    def crosses(self, source: int) -> bool:
        """Return whether it is sent from stage ``source`` to the next, beside that stage's output."""
        return self.of < source < self.until


@dataclass(frozen=True, kw_only=True)
class Section:
    """A row of a stage's units, from its first one or the end of another section, that can have a head."""

    stop: int
    """Number of the stage's units up to its end."""
    build_head: Callable[[], nn.Module]
    """Builds the auxiliary head that it would have as a stage."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A stage's place in the network: all that an objective needs when it is made."""

    number: int
    """Number of the stage, from 1."""
    stages: int
    input_shape: Shape
    """Shape of one input row, without the batch dimension."""
    output_shape: Shape
    sample_shape: Shape = ()
    """Shape of one of the model's inputs."""
    total_steps: int
    """Number of training batches in the run."""
    previous_delta: Summary | None = None
    """How delta of the stage before is encoded; None if there is none."""
    sections: Sequence[Section] = ()
    """The stage itself; or, of an uncut model, what its stages would be."""
    head_loss: LossFunction | None = None
    """The loss by which auxiliary heads train."""


class Objective(Protocol):
    """The objective of one stage: what it minimises, and how.

    One that needs no graph, but something else of the body's pass on a training batch, runs that pass itself:
    it has a further method, ``run_body(body, x)``, which returns the output.
    """

    wants_delta: bool
    """Whether the stage before must send its output gradient along."""

    def loss(self, local: LocalPass, out: Tensor) -> Tensor:
        """Compute the scalar to minimise: the task's loss at an output of the body, plus any added terms."""

    def head_backward(self, local: LocalPass) -> tuple[Tensor, Tensor]:
        """Return the loss (scalar) and delta ``[B, ...]``, both detached."""

    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> Residual | None:
        """Complete the parameters' gradients; return the residual if delta was given.

        Args:
            local: the pass given to :meth:`head_backward`.
            previous_delta: output gradient ``[B, ...]`` of the stage before, with x's shape; None on a
                batch that is not reconciled.
        """


class ObjectiveRecipe(Protocol):
    """Makes the objective of every stage of a network.

    One that wants more than its stage's input has a further method, ``relays(stages)``, which returns a
    :class:`Relay` for each tensor; it is called with the number of stages. One that changes the network has
    ``network(chain, starts)``: called with a tried chain and the index of each stage's first unit, it returns
    a chain of units of the same names, which may pass on more.
    One whose stages train a module on the body's output beside the head has ``trains_beside(number,
    stages)``, whether a stage does, and ``beside_head(place)``, which builds it, or returns None; so its cost
    is known where a cut is chosen.
    One that cannot train every network has ``check_stage(body, head, stage=)``, and one that does nothing in
    so few stages ``check_stages(stages)``; both raise a ``UserError``. One whose
    stages run no backward pass says so by ``without_backward = True``. One whose stages send something back
    declares it as its ``way_back``, a :class:`~pipelocal.objective.way_back.WayBack`.
    """

    @property
    def reconcile_every(self) -> int | None:
        """Interval, in batches, at which stages also send their output gradients; None for never."""

    def for_stage(self, place: Place) -> Objective:
        """Make a new objective for the stage at this place."""

    def delta_encoding(self, shape: Shape, seed: int) -> Summary:
        """Return how the output gradient of a stage is encoded.

        Args:
            shape: shape of one row of the stage's output.
            seed: the same at both ends of the edge.
        """


def relays_of(recipe: ObjectiveRecipe, stages: int) -> Sequence[Relay]:
    """Return what an objective has relayed in a network of this many stages."""
    asked: Callable[[int], Sequence[Relay]] | None = getattr(recipe, "relays", None)
    return () if asked is None else asked(stages)


def network_of(recipe: ObjectiveRecipe, chain: Chain, starts: Sequence[int]) -> Chain:
    """Return the network that is trained, if a chain is cut before the units with these indices."""
    change: Callable[[Chain, Sequence[int]], Chain] | None = getattr(recipe, "network", None)
    return chain if change is None else change(chain, starts)
