"""What a stage minimises: its local loss, alone or with a reconciliation term.

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

import torch.nn.functional as F
from torch import Tensor, autograd, nn

from pipelocal.objective.reconciliation import Reconciliation, Residual


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy; logits ``[..., classes]``, target int64 ``[...]``."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


AddGradientsAt = Callable[[Tensor, Tensor | None, Tensor], None]
"""Adds to the parameters' ``.grad`` a factor, a scalar, times the gradient of the local loss at an input
``[b, ...]``. With rows ``[b]`` of the batch, whose labels are meant, or None for all. Called with input,
rows and factor. Random numbers are the batch's own, and no buffer moves, such as BatchNorm's running
statistics."""


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
    """Those of body and head."""
    step: int
    """Batches that the stage was trained on before."""
    seed: int
    """For what the objective draws on this batch."""
    mixed: bool = False
    """Whether the pass ran under autocast; ``add_gradients_at`` never does."""

    @property
    def reconciled(self) -> bool:
        """Whether delta of the stage before will come."""
        return self.x.requires_grad


LossOf = Callable[[Tensor], Tensor]
"""The local loss, a scalar mean over the batch, as a function of the body's output."""


class Objective(Protocol):
    """What a stage minimises."""

    wants_delta: bool
    """Whether the stage before must send its output gradient along."""

    def head_backward(self, local: LocalPass, loss_of: LossOf) -> tuple[Tensor, Tensor]:
        """The loss (scalar) and delta ``[B, ...]``, both detached."""

    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> Residual | None:
        """Complete the parameters' gradients; what is left to reconcile, if delta was given.

        Args:
            local: what :meth:`head_backward` was given.
            previous_delta: output gradient ``[B, ...]`` of the stage before, of x's shape; None on a
                batch that is not reconciled.
        """


class Greedy:
    """The local loss alone. With a single stage this is ordinary back-propagation."""

    wants_delta = False

    def __init__(self) -> None:
        self._delta: Tensor | None = None

    def head_backward(self, local: LocalPass, loss_of: LossOf) -> tuple[Tensor, Tensor]:
        feature = local.out.detach().requires_grad_()
        loss = loss_of(feature)
        loss.backward()  # type: ignore[no-untyped-call]
        assert feature.grad is not None
        self._delta = feature.grad
        return loss.detach(), self._delta

    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> None:
        assert previous_delta is None, "greedy stages do not ask for delta"
        delta, self._delta = self._delta, None
        if local.out.requires_grad:
            local.out.backward(delta)  # type: ignore[no-untyped-call]


class ExactReconciliation:
    """Successive Gradient Reconciliation by double backward (Yang et al. 2024, arXiv 2406.05222).

    ``L = l + weight * D(eta, delta of the stage before)``, differentiated exactly: eta is itself
    computed as a graph. Roughly doubles the time and the memory of a step.

    Args:
        reconciliation: distance, weight and schedule.
    """

    wants_delta = True

    def __init__(self, reconciliation: Reconciliation) -> None:
        self._reconciliation = reconciliation
        self._plain = Greedy()
        self._pending: tuple[Tensor, Tensor] | None = None

    def head_backward(self, local: LocalPass, loss_of: LossOf) -> tuple[Tensor, Tensor]:
        """See :class:`Objective`."""
        if not local.reconciled:
            return self._plain.head_backward(local, loss_of)
        loss = loss_of(local.out)
        eta, delta = autograd.grad(loss, (local.x, local.out), create_graph=True)
        self._pending = (loss, eta)
        return loss.detach(), delta.detach()

    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> Residual | None:
        """See :class:`Objective`."""
        if previous_delta is None:
            self._plain.body_backward(local, None)
            return None
        assert self._pending is not None, "head_backward comes first, on a batch to be reconciled"
        (loss, eta), self._pending = self._pending, None
        settings = self._reconciliation
        eta, delta = settings.comparable(eta, previous_delta)
        distance = settings.distance(eta, delta)
        weight = settings.weight_at(local.step)
        (loss + weight * distance).backward()  # type: ignore[no-untyped-call]
        return Residual.of(distance, eta, delta)
