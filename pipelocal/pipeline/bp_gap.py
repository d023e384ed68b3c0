"""How far local training is from back-propagation, measured where one process holds all stages.

With ``G_k`` the gradient that back-propagation of the last stage's loss gives at stage k's output,
and ``e_j`` the difference of eta and delta on stage j (F1 in docs/how-it-works.md)::

    G_k - delta_k = sum over j > k of  J_{k+1}^T ... J_{j-1}^T e_j
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, autograd

from pipelocal.stage.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Of one stage on one batch."""

    update_cosine: float
    """Between the gradients that train the body, and those of back-propagation; 1 where they agree."""
    residual_sum: float
    """Length of ``G_k - delta_k``, the sum of F1, over that of ``G_k``; 0 on the last stage."""


class BackPropagationGap:
    """Runs back-propagation beside a batch of local training, and compares.

    Args:
        stages: all of them, in order.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._expected: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def begin(self, x: Tensor, target: Tensor) -> None:
        """Back-propagate a batch through all stages as they are now; trains nothing.

        Args:
            x: the first stage's input ``[B, ...]``.
            target: labels.
        """
        outputs, loss = [], None
        for stage in self._stages:
            x = stage.replay_body(x)
            if not x.requires_grad:  # behind frozen stages
                x.requires_grad_()
            outputs.append(x)
        loss = self._stages[-1].replay_loss(x, target)
        at_outputs = autograd.grad(loss, outputs, retain_graph=True)
        for stage, at_output in zip(self._stages, at_outputs, strict=True):
            if stage.frozen:
                continue
            parameters = [p for p in stage.body.parameters() if p.requires_grad]
            gradients: tuple[Tensor, ...] = ()
            if parameters:  # a body may be one view
                gradients = autograd.grad(
                    loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            self._expected[stage.number] = (at_output.detach(), [g.detach() for g in gradients])

    def compare(self, stage: Stage, delta: Tensor) -> Gap | None:
        """What a stage trains by, against back-propagation; between reconcile and update.

        Args:
            stage: one of the stages, after :meth:`Stage.reconcile`.
            delta: its output gradient.

        Returns:
            None if :meth:`begin` was not called for this batch, or the stage is frozen.
        """
        if stage.number not in self._expected:
            return None
        at_output, expected = self._expected.pop(stage.number)
        own = [p.grad for p in stage.body.parameters() if p.requires_grad]
        one = torch.cat(
            [g.flatten() for g in own if g is not None] or [delta.new_zeros(1)]
        ).double()
        two = torch.cat([g.flatten() for g in expected] or [delta.new_zeros(1)]).double()
        length = torch.linalg.vector_norm(at_output)
        return Gap(
            update_cosine=float(torch.cosine_similarity(one, two, dim=0)),
            residual_sum=float(torch.linalg.vector_norm(at_output - delta) / length),
        )
