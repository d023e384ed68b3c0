"""A stage whose gradients are computed by explicit formulas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelocal.closed_form.loss import cross_entropy_with_gradient
from pipelocal.closed_form.run import BodyRun, ClosedRun
from pipelocal.objective.first_order import FirstOrderReconciliation
from pipelocal.objective.local import LocalPass
from pipelocal.seeding import derive_seed
from pipelocal.stage.layout import own_memory
from pipelocal.stage.stage import NONE, Stage
from pipelocal.stage.under_way import UnderWay


class ClosedFormStage(Stage):
    """Body and head with their local training, without autograd's backward through any of it.

    In use it is a :class:`Stage`. Evaluation and the comparison with back-propagation run the modules
    themselves.

    Args:
        stage: what :class:`Stage` takes; the body is one layer, see
            :func:`~pipelocal.closed_form.check.check_stage`, the task's loss is cross entropy, and the
            objective is greedy or reconciles by first order.
    """

    def __init__(self, **stage: Any) -> None:
        super().__init__(**stage)
        self._body_run: BodyRun | None = None
        self._delta: Tensor | None = None

    def forward(
        self,
        x: Tensor,
        beside: Sequence[Tensor] = (),
        *,
        reconciled: bool = False,
        relayed: Mapping[str, Tensor] = NONE,
    ) -> Tensor:
        """See :meth:`Stage.forward`."""
        del reconciled, relayed  # the gradient at the input can be formed or left out later
        assert not beside, "a layer has one input"
        self._set_train_mode(not self.frozen)
        self._passes.step = self.steps
        self._passes.seed_for("step")
        x = x.detach()
        if self.frozen:
            with torch.no_grad():
                out: Tensor = self.body(x)
        else:
            self._body_run = self._run_body(x)
            out = self._body_run.out
        local = LocalPass(
            x=x,
            out=out,
            add_gradients_at=self._add_gradients_at,
            parameters=self._parameters,
            step=self.steps,
            seed=derive_seed(self._seed, "objective", self.number, self.steps),
        )
        self._batch = UnderWay(local=local)
        return own_memory(out, x)

    @torch.no_grad()
    def output_gradient(self, target: Tensor) -> Tensor:
        """See :meth:`Stage.output_gradient`."""
        batch = self._under_way()
        batch.target = target
        self._passes.seed_for("head")
        head_run = ClosedRun(self.head, batch.local.out, moves_buffers=not self.frozen)
        batch.logits = head_run.out
        runs: list[BodyRun] = [run for run in (self._body_run, head_run) if run is not None]
        self._passes.kept_bytes = self._count_kept(*runs)
        batch.loss, at_logits = cross_entropy_with_gradient(head_run.out, target)
        batch.weight = target.numel()
        self._update.weigh(batch.weight)
        delta = head_run.backward(at_logits, wants_input=True)
        assert delta is not None
        self._delta = delta.contiguous()
        return self._delta

    @torch.no_grad()
    def reconcile(self, delta: Tensor | None) -> None:
        """See :meth:`Stage.reconcile`."""
        eta = self._backward_through_body(wants_input=delta is not None)
        if delta is None:
            return
        assert isinstance(self.objective, FirstOrderReconciliation), "greedy wants no delta"
        assert eta is not None
        batch = self._under_way()
        batch.residual = self.objective.reconcile(batch.local, eta, delta)

    def _run_body(self, x: Tensor) -> BodyRun:
        return ClosedRun(self.body, x, moves_buffers=True)

    def _backward_through_body(self, *, wants_input: bool) -> Tensor | None:
        run, self._body_run = self._body_run, None
        upstream, self._delta = self._delta, None
        assert run is not None, "forward comes first"
        assert upstream is not None, "output_gradient comes first"
        return run.backward(upstream, wants_input=wants_input)

    @torch.no_grad()
    def _add_gradients_at(self, x: Tensor, rows: Tensor | None, factor: Tensor) -> None:
        """See :data:`~pipelocal.objective.local.AddGradientsAt`."""
        self._passes.seed_for("step")
        body_run = ClosedRun(self.body, x, moves_buffers=False)
        self._passes.seed_for("head")
        head_run = ClosedRun(self.head, body_run.out, moves_buffers=False)
        target = self._under_way().target_of(rows)
        _, at_logits = cross_entropy_with_gradient(head_run.out, target)
        # All formulas are linear in the upstream gradient, so the factor is applied only here.
        at_output = head_run.backward(at_logits * factor, wants_input=True)
        assert at_output is not None
        body_run.backward(at_output, wants_input=False)

    def _count_kept(self, *runs: BodyRun) -> int:
        """Return the bytes of the distinct storages that the runs keep, without the model's own."""
        own = {p.untyped_storage().data_ptr() for p in self._parameters()}
        kept = (tensor.untyped_storage() for run in runs for tensor in run.kept())
        distinct = {storage.data_ptr(): storage.nbytes() for storage in kept}
        return sum(size for place, size in distinct.items() if place not in own)
