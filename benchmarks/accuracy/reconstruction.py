"""Reconstruction of the image in the early stages, for ``--objective reconstruction.py:Reconstruction``.

After InfoPro (arXiv 2101.10832), which keeps a stage from throwing away what later stages need. The form is
our own: the target is the image pooled to the size of the stage's output, so that the decoder is small; its
weight falls from 1 at the first stage to 0 at the last but one, and that of the task's loss rises from 0.3
to 1::

    stage              1     2     ...   K-1    K
    reconstruction     1     ...         0      0
    task               0.3   ...         1      1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal import Greedy, Relay
from pipelocal.objective import Place
from pipelocal.objective.local import LocalPass

TASK_WEIGHT = 0.3
"""Weight of the task's loss at the first stage."""
DECODER_CHANNELS = 12
COLOURS = 3
"""Channels of the image."""


class Reconstruction(Greedy, nn.Module):
    """The task's loss and the mean squared error of a decoded image."""

    figure_names = ("reconstruction",)

    @staticmethod
    def relays(stages: int) -> Sequence[Relay]:
        """Have the image relayed to every stage but the last."""
        return [Relay(name="image", of=0, until=stages - 1)] if stages > 2 else []

    def __init__(self, place: Place) -> None:
        nn.Module.__init__(self)
        last = place.stages - 1  # of the auxiliary stages, from 1
        share = 1.0 if place.number >= last else (place.number - 1) / (last - 1)
        self.weight = 1 - share
        self.task_weight = TASK_WEIGHT + (1 - TASK_WEIGHT) * share
        if self.weight == 0:
            return
        self.decoder = nn.Sequential(
            nn.Conv2d(place.output_shape[0], DECODER_CHANNELS, 3, padding=1),
            nn.BatchNorm2d(DECODER_CHANNELS),
            nn.ReLU(),
            nn.Conv2d(DECODER_CHANNELS, COLOURS, 3, padding=1),
        )

    def loss(self, local: LocalPass, out: Tensor) -> Tensor:
        """See :class:`~pipelocal.objective.greedy.Greedy`."""
        task = super().loss(local, out)
        if self.weight == 0:
            self.figures["reconstruction"] = task.new_zeros(())
            return task
        image = local.relayed.get("image", local.x)
        target = F.adaptive_avg_pool2d(image.float(), (out.shape[2], out.shape[3]))
        error = F.mse_loss(self.decoder(out).float(), target)
        self.figures["reconstruction"] = error.detach()
        return self.weight * error + self.task_weight * task
