"""Measures the gap between local training and back-propagation, if one process holds all stages.

Let ``G_k`` be the gradient of the last stage's loss at stage k's output, by back-propagation, and
``e_j`` the difference between eta and delta on stage j. Then (F1 in docs/how-it-works.md)::

    G_k - delta_k = sum over j > k of  J_{k+1}^T ... J_{j-1}^T e_j
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, autograd

from pipelocal.models.payload import Payload, unpack
from pipelocal.stage.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The gap of one stage on one batch."""

    update_cosine: float
    """Cosine between the gradients that train the body and those of back-propagation; 1 if they agree."""
    residual_sum: float
    """Length of ``G_k - delta_k``, the sum in F1, over that of ``G_k``; 0 on the last stage."""


class BackPropagationGap:
    """Runs back-propagation alongside a batch of local training, and compares the gradients.

    Args:
        stages: all stages, in order.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._expected: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def begin(self, x: Payload, target: Tensor) -> None:
        """Back-propagate a batch through all stages in their current state, without training.

        Args:
            x: the first stage's inputs ``[B, ...]``.
            target: labels.
        """
        outputs, loss = [], None
        for stage in self._stages:
            x = stage.replay_body(x)
            main, _ = unpack(x)
            if not main.requires_grad:  # after frozen stages
                main.requires_grad_()
            outputs.append(main)
        loss = self._stages[-1].replay_loss(x, target)
        at_outputs = autograd.grad(loss, outputs, retain_graph=True)
        for stage, at_output in zip(self._stages, at_outputs, strict=True):
            if stage.frozen:
                continue
            parameters = [p for p in stage.body.parameters() if p.requires_grad]
            gradients: tuple[Tensor, ...] = ()
            if parameters:  # a body may be a mere view
                gradients = autograd.grad(
                    loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            self._expected[stage.number] = (at_output.detach(), [g.detach() for g in gradients])

    def compare(self, stage: Stage, delta: Tensor) -> Gap | None:
        """Compare a stage's gradients with back-propagation; call it between reconcile and update.

        Args:
            stage: one of the stages, after :meth:`Stage.reconcile`.
            delta: the stage's output gradient.

        Returns:
            The gap; None if :meth:`begin` was not called for this batch, or the stage is frozen.
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
