"""Successive Gradient Reconciliation by double backward."""

from __future__ import annotations

from torch import Tensor, autograd

from pipelocal.objective.greedy import Greedy
from pipelocal.objective.local import LocalPass
from pipelocal.objective.reconciliation import Reconciliation
from pipelocal.objective.residual import Residual


class ExactReconciliation(Greedy):
    """Successive Gradient Reconciliation by double backward (Yang et al. 2024, arXiv 2406.05222).

    ``L = l + weight * D(eta, delta of the stage before)``, differentiated exactly: eta itself
    is computed with a graph. This roughly doubles the time and the memory of a step.

    Args:
        reconciliation: distance, weight and schedule.
    """

    wants_delta = True

    def __init__(self, reconciliation: Reconciliation) -> None:
        super().__init__()
        self._reconciliation = reconciliation
        self._pending: tuple[Tensor, Tensor] | None = None

    def head_backward(self, local: LocalPass) -> tuple[Tensor, Tensor]:
        """See :class:`Objective`."""
        if not local.reconciled:
            return super().head_backward(local)
        loss = self.loss(local, local.out)
        eta, delta = autograd.grad(loss, (local.x, local.out), create_graph=True)
        self._pending = (loss, eta)
        return loss.detach(), delta.detach()

    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> Residual | None:
        """See :class:`Objective`."""
        if previous_delta is None:
            return super().body_backward(local, None)
        assert self._pending is not None, "head_backward comes first, on a batch to be reconciled"
        (loss, eta), self._pending = self._pending, None
        settings = self._reconciliation
        compared, delta = settings.comparable(eta, previous_delta)
        distance = settings.distance(compared, delta)
        weight = settings.weight_at(local.step)
        (loss + weight * distance).backward()  # type: ignore[no-untyped-call]
        return Residual.of(distance, compared, delta, whole=eta)
