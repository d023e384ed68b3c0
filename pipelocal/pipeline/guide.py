"""Draws the classifiers of guided heads (:mod:`pipelocal.heads.guided`) to the last stage's."""

from __future__ import annotations

import torch
from torch import nn

from pipelocal.heads.guided import share_of
from pipelocal.objective import WayBack
from pipelocal.pipeline.way_back import Values
from pipelocal.stage.stage import Stage


class Guide:
    """What a stage does with the classifier's weights (:class:`~pipelocal.pipeline.way_back.TakesAndGives`).

    Args:
        stage: whose head is guided, or which has the classifier itself.
        classifier: the copy in its head, or the classifier.
        way: names the weights, and says how often they flow.
    """

    doing = "step"

    def __init__(self, stage: Stage, classifier: nn.Module, way: WayBack) -> None:
        self._stage = stage
        self._classifier = classifier
        self._names = [kind.name for kind in way.weights]
        self._share = share_of(way.every)
        self._came: Values | None = None

    @torch.no_grad()
    def take(self, came: Values) -> None:
        """Draw the copy; not its buffers, as it sees other inputs, and not on a stage that trains no more.

        Gradients and the optimizer's state stay as they are.

        Args:
            came: weights ``[1, ...]``.
        """
        self._came = came
        if self._stage.frozen:
            return
        own = dict(self._classifier.named_parameters())
        for name in self._names:
            own[name].lerp_(came[name][0], self._share)

    def give(self) -> Values:
        """Return the weights ``[1, ...]``: those that came; of the last stage a copy of its own."""
        if self._came is not None:
            came, self._came = self._came, None
            return came
        own = dict(self._classifier.named_parameters())
        return {name: own[name].detach().clone().unsqueeze(0) for name in self._names}
