"""Successive Gradient Reconciliation without double backward.

The reconciled loss is ``L = l + weight * D(eta, delta)``, with ``eta = dl/dx``. Its second term's
gradient is a mixed derivative along one direction, ``v = dD/d eta``, held constant::

    d/d theta D  =  d/d theta < eta(theta), v >  =  d/d eps  d/d theta l(x + eps v)   at eps = 0

so two ordinary gradients give it, by a forward or by a central difference::

    ( d/d theta l(x + eps v) - d/d theta l(x) ) / eps
    ( d/d theta l(x + eps v) - d/d theta l(x - eps v) ) / (2 eps)

It needs nothing but forward and backward passes, and so works where there is no double backward:
fused attention, ``torch.compile``, activation checkpointing. Compare the exact form,
:class:`~pipelocal.objective.exact.ExactReconciliation`.

delta carries the label. It enters here as a displacement small enough to be a difference quotient,
and only in passes that no output of the stage comes from.
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
"""Length of the displacement, as a share of the input's: where rounding errors, which grow as it
shrinks, and the curvature, which grows with it, matter least."""

SMALLEST_SCALE = 1e-2
"""An input whose root mean square is below this, such as zeros behind dead ReLUs, has no scale of its own.

What a layer makes of it is ruled by biases, and by what norms add to a variance. The displacement is then
the share of an input of root mean square 1, as behind a norm: a share of the input's own length would be
lost in rounding, and of zeros it would be nothing."""


class FirstOrderReconciliation(Greedy):
    """SGR by one more forward and backward pass, or by two on a part of the batch.

    With the whole batch the plain gradient is at hand, and a forward difference takes one pass. With
    a part of it a central difference takes two, on rows that are drawn anew each time. Under autocast
    it is always a central one, of passes in float32.

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
        # Without a name here, so that reconcile can let it go before its passes.
        return self.reconcile(local, _taken_gradient(local.x), previous_delta)

    def reconcile(self, local: LocalPass, eta: Tensor, previous_delta: Tensor) -> Residual:
        """Add D's gradients to the parameters', which hold the local loss's already.

        However those were formed: the network is met through ``local.add_gradients_at`` alone.

        Args:
            local: the forward pass; its output's graph is not needed.
            eta: gradient of the local loss at the input, ``[B, ...]``, detached.
            previous_delta: output gradient of the stage before, as it travelled.
        """
        residual, v = self._direction(eta, previous_delta)
        del eta  # of x's size, and needed no more
        x, fraction, rows = local.x.detach(), self._reconciliation.fraction, None
        if fraction < 1.0:
            # D is a mean over rows, so that over some of them has the same expectation.
            rows = _some_rows(len(x), fraction, local.seed).to(x.device)
            x, v = x[rows], v[rows]
        scale = power_of_two(v)
        v /= scale  # so that its squares are neither infinite nor nothing
        length_of_v = torch.linalg.vector_norm(v)
        step = self._reconciliation.step or STEPS.get(x.dtype, STEPS[torch.float32])
        displacement = step * _length_of_scale(x)
        epsilon = displacement / length_of_v.clamp_min(SMALLEST_NORM)
        # No gradient of D, nothing to add: and no quotient of zeros.
        weight = self._reconciliation.weight_at(local.step)
        factor = torch.where(length_of_v * scale > SMALLEST_NORM, weight / epsilon * scale, 0.0)
        # Beyond this, what rounding makes of two equal gradients would count for more than they do.
        factor = factor.clamp_max(1 / torch.finfo(factor.dtype).eps)
        v *= epsilon
        mixed = local.mixed or torch.is_autocast_enabled(x.device.type)
        # Fewer bits would round the displacement away; so the difference is formed in full ones.
        with torch.autocast(x.device.type, enabled=False):
            if rows is None and not mixed:
                # g + factor * (g' - g), where the gradients hold g already.
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
        """What there is to reconcile, and ``v``; nothing else of x's size is left behind.

        Autograd's only part here is the distance, a formula of two gradients that anybody may
        register: there is no layer of the network in it.
        """
        leaf = eta.detach().requires_grad_()
        per_sample, delta = self._reconciliation.comparable(leaf, message)
        distance = self._reconciliation.distance(per_sample, delta)
        (v,) = autograd.grad(distance, leaf)  # first: it lets go what the distance has kept
        return Residual.of(distance, per_sample, delta), v


def _length_of_scale(x: Tensor) -> Tensor:
    """Length of an input, or of one of the same shape and root mean square 1 if this has no scale."""
    own, usual = length(x), x.numel() ** 0.5
    return torch.where(own < SMALLEST_SCALE * usual, usual, own)


def _taken_gradient(x: Tensor) -> Tensor:
    """``x.grad``, which ``x`` holds no longer."""
    gradient, x.grad = x.grad, None
    assert gradient is not None, "a batch that is reconciled wants its input's gradient"
    return gradient


def _some_rows(rows: int, fraction: float, seed: int) -> Tensor:
    """At least two rows, where there are two, drawn without repetition; sorted indices."""
    count = min(rows, max(2, round(fraction * rows)))
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(rows, generator=generator)[:count].sort().values
