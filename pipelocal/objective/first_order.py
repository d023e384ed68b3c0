"""Successive Gradient Reconciliation without double backward.

The reconciled loss is ``L = l + weight * D(eta, delta)``, with ``eta = dl/dx``. Its second term's
gradient is a mixed derivative along one direction, ``v = dD/d eta``, held constant::

    d/d theta D  =  d/d theta < eta(theta), v >  =  d/d eps  d/d theta l(x + eps v)   at eps = 0

so two ordinary gradients give it, by a forward or by a central difference::

    ( d/d theta l(x + eps v) - d/d theta l(x) ) / eps
    ( d/d theta l(x + eps v) - d/d theta l(x - eps v) ) / (2 eps)

It needs nothing but forward and backward passes, and so works where there is no double backward:
fused attention, ``torch.compile``, activation checkpointing. Compare the exact form,
:class:`~pipelocal.objective.local.ExactReconciliation`.

delta carries the label. It enters here as a displacement small enough to be a difference quotient,
and only in passes that no output of the stage comes from.
"""

from __future__ import annotations

import torch
from torch import Tensor, autograd

from pipelocal.objective.distances import SMALLEST_NORM
from pipelocal.objective.local import Greedy, LocalPass, LossOf
from pipelocal.objective.reconciliation import Reconciliation, Residual

STEPS = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Length of the displacement, as a share of the input's: where rounding errors, which grow as it
shrinks, and the curvature, which grows with it, matter least."""


class FirstOrderReconciliation:
    """SGR by one more forward and backward pass, or by two on a part of the batch.

    With the whole batch the plain gradient is at hand, and a forward difference takes one pass. With
    a part of it a central difference takes two, on rows that are drawn anew each time. Under autocast
    it is always a central one, of passes in float32.

    Args:
        reconciliation: distance, weight and schedule, fraction and step.
    """

    wants_delta = True

    def __init__(self, reconciliation: Reconciliation) -> None:
        self._reconciliation = reconciliation
        self._plain = Greedy()

    def head_backward(self, local: LocalPass, loss_of: LossOf) -> tuple[Tensor, Tensor]:
        """See :class:`Objective`; the same as without reconciliation."""
        return self._plain.head_backward(local, loss_of)

    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> Residual | None:
        """See :class:`Objective`; without delta the batch is not reconciled."""
        self._plain.body_backward(local, None)
        if previous_delta is None:
            return None
        residual, v = self._direction(local, previous_delta)
        x, fraction, rows = local.x.detach(), self._reconciliation.fraction, None
        if fraction < 1.0:
            # D is a mean over rows, so that over some of them has the same expectation.
            rows = _some_rows(len(x), fraction, local.seed).to(x.device)
            x, v = x[rows], v[rows]
        length = torch.linalg.vector_norm(v)
        step = self._reconciliation.step or STEPS.get(x.dtype, STEPS[torch.float32])
        epsilon = step * torch.linalg.vector_norm(x) / length.clamp_min(SMALLEST_NORM)
        # No gradient of D, nothing to add: and no quotient of zeros.
        weight = self._reconciliation.weight_at(local.step)
        factor = torch.where(length > SMALLEST_NORM, weight / epsilon, 0.0)
        v *= epsilon
        mixed = torch.is_autocast_enabled(x.device.type)
        # Fewer bits would round the displacement away; so the difference is formed in full ones.
        with torch.autocast(x.device.type, enabled=False):
            if rows is None and not mixed:
                # g + factor * (g' - g), where the gradients hold g already.
                for parameter in local.parameters():
                    if parameter.grad is not None:
                        parameter.grad.mul_(1 - factor)
                v += x
                _backward(factor * local.loss_at(v, None))
            else:
                _backward(factor / 2 * local.loss_at(x + v, rows))
                _backward(-factor / 2 * local.loss_at(x - v, rows))
        return residual

    def _direction(self, local: LocalPass, message: Tensor) -> tuple[Residual, Tensor]:
        """What there is to reconcile, and ``v``; nothing else of x's size is left behind."""
        assert local.x.grad is not None, "a batch that is reconciled wants its input's gradient"
        leaf, local.x.grad = local.x.grad.requires_grad_(), None
        eta, delta = self._reconciliation.comparable(leaf, message)
        distance = self._reconciliation.distance(eta, delta)
        residual = Residual.of(distance, eta, delta)
        (v,) = autograd.grad(distance, leaf)
        return residual, v


def _backward(loss: Tensor) -> None:
    """Add a loss's gradients to the parameters', if it depends on any."""
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]


def _some_rows(rows: int, fraction: float, seed: int) -> Tensor:
    """At least two rows, where there are two, drawn without repetition; sorted indices."""
    count = min(rows, max(2, round(fraction * rows)))
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(rows, generator=generator)[:count].sort().values
