"""Successive Gradient Reconciliation without double backward.

The reconciled loss is ``L = l + weight * D(eta, delta)``, with ``eta = dl/dx``. Its second term's
gradient is a mixed derivative along one direction, ``v = dD/d eta``, held constant::

    d/d theta D  =  d/d theta < eta(theta), v >  =  d/d eps  d/d theta l(x + eps v)   at eps = 0

so two ordinary gradients give it, by a forward or a central difference::

    ( d/d theta l(x + eps v) - d/d theta l(x) ) / eps
    ( d/d theta l(x + eps v) - d/d theta l(x - eps v) ) / (2 eps)

It needs only forward and backward passes, and so works where double backward does not:
fused attention, ``torch.compile``, activation checkpointing. Compare the exact form,
:class:`~pipelocal.objective.exact.ExactReconciliation`.

delta carries label information. It enters only as a displacement small enough for a difference quotient,
and only in passes that do not produce the stage's output.
"""

from __future__ import annotations

import torch
from torch import Tensor, autograd

from pipelocal.objective.distances import SMALLEST_NORM, length, power_of_two
from pipelocal.objective.greedy import Greedy
from pipelocal.objective.local import LocalPass
from pipelocal.objective.reconciliation import Reconciliation
from pipelocal.objective.residual import Residual

STEPS = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Length of the displacement relative to the input's, which balances rounding errors, larger for short
displacements, against curvature, larger for long ones."""

SMALLEST_SCALE = 1e-2
"""An input whose root mean square is below this, such as zeros behind dead ReLUs, counts as having no scale.

A layer's output is then dominated by biases, and by the epsilon that norms add to a variance. The
displacement is taken relative to an input of root mean square 1 instead, as after a norm: relative to the
input's own length it would be lost in rounding, and for zeros it would vanish."""


class FirstOrderReconciliation(Greedy):
    """SGR by one extra forward and backward pass, or by two on a part of the batch.

    For the whole batch the plain gradient is available, and a forward difference takes one pass. For a
    part of it a central difference takes two, on rows that are redrawn each time. Under autocast the
    difference is always central, with passes in float32.

    Args:
        reconciliation: distance, weight and schedule, fraction and step.
    """

    wants_delta = True

    def __init__(self, reconciliation: Reconciliation) -> None:
        super().__init__()
        self._reconciliation = reconciliation

    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> Residual | None:
        """See :class:`Objective`; without delta the batch is not reconciled."""
        super().body_backward(local, None)
        if previous_delta is None:
            return None
        # Not bound to a name here, so that reconcile can free it before its passes.
        return self.reconcile(local, local.taken_input_gradient(), previous_delta)

    def reconcile(self, local: LocalPass, eta: Tensor, previous_delta: Tensor) -> Residual:
        """Add D's gradients to the parameters' gradients, which already hold the local loss's.

        How those were computed does not matter: only ``local.add_gradients_at`` runs the network.

        Args:
            local: the forward pass; its output's graph is not needed.
            eta: gradient of the local loss at the input, ``[B, ...]``, detached.
            previous_delta: output gradient of the stage before, as received.
        """
        residual, v = self._direction(eta, previous_delta)
        weight = self._reconciliation.weight_at(local.step)
        if weight == 0:  # such as before a late start: only the residual is wanted
            return residual
        del eta  # as large as x, and no longer needed
        x, fraction, rows = local.x.detach(), self._reconciliation.fraction, None
        if fraction < 1.0:
            # D is a mean over rows, so its mean over a sample of them has the same expectation.
            rows = _some_rows(len(x), fraction, local.seed).to(x.device)
            x, v = x[rows], v[rows]
        scale = power_of_two(v)
        v /= scale  # so that its squares neither overflow nor underflow
        length_of_v = torch.linalg.vector_norm(v)
        step = self._reconciliation.step or STEPS.get(x.dtype, STEPS[torch.float32])
        displacement = step * _length_of_scale(x)
        epsilon = displacement / length_of_v.clamp_min(SMALLEST_NORM)
        # D has no gradient: nothing to add, and no division by zero.
        factor = torch.where(length_of_v * scale > SMALLEST_NORM, weight / epsilon * scale, 0.0)
        # Beyond this, rounding errors between equal gradients would outweigh the gradients.
        factor = factor.clamp_max(1 / torch.finfo(factor.dtype).eps)
        v *= epsilon
        mixed = local.mixed or torch.is_autocast_enabled(x.device.type)
        # Lower precision would round the displacement away, so compute the difference in full.
        with torch.autocast(x.device.type, enabled=False):
            if rows is None and not mixed:
                # g + factor * (g' - g), where the gradients already hold g.
                for parameter in local.parameters():
                    if parameter.grad is not None:
                        parameter.grad.mul_(1 - factor)
                v += x
                local.add_gradients_at(v, None, factor)
            else:
                local.add_gradients_at(x + v, rows, factor / 2)
                local.add_gradients_at(x - v, rows, -factor / 2)
        return residual

    @torch.enable_grad()
    def _direction(self, eta: Tensor, message: Tensor) -> tuple[Residual, Tensor]:
        """Return the residual and ``v``; nothing else as large as x is kept.

        Autograd is used only for the distance, a formula of two gradients that users may register; no
        layer of the network is involved.
        """
        leaf = eta.detach().requires_grad_()
        per_sample, delta = self._reconciliation.comparable(leaf, message)
        distance = self._reconciliation.distance(per_sample, delta)
        (v,) = autograd.grad(distance, leaf)  # first, which frees what the distance kept
        return Residual.of(distance, per_sample, delta, whole=eta), v


def _length_of_scale(x: Tensor) -> Tensor:
    """Return an input's length, or that of a like input with root mean square 1 if it has no scale."""
    own, usual = length(x), x.numel() ** 0.5
    return torch.where(own < SMALLEST_SCALE * usual, usual, own)


def _some_rows(rows: int, fraction: float, seed: int) -> Tensor:
    """Draw rows without repetition, at least two if possible; return sorted indices."""
    count = min(rows, max(2, round(fraction * rows)))
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(rows, generator=generator)[:count].sort().values
