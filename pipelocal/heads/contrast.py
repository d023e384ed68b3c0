"""A head for a contrastive loss: a projection that trains the body, and a linear probe that only looks on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST_SIDE = 3
"""Least side of maps behind which a convolution is worth it."""


class ContrastHead(nn.Module):
    """Makes logits ``[B, classes]``, and in training a projection beside them, ``[B, classes + D]``.

    Args:
        projection: an auxiliary head with D outputs.
        probe: maps the same features to logits; its gradient ends at the features.
    """

    def __init__(self, projection: nn.Module, probe: nn.Module) -> None:
        super().__init__()
        self.projection, self.probe = projection, probe
        self.takes_input = bool(getattr(projection, "takes_input", False))

    def forward(self, features: Tensor, *x: Tensor) -> Tensor:
        logits: Tensor = self.probe(features.detach())
        if not self.training:
            return logits
        return torch.cat([logits, self.projection(features, *x)], -1)


def projection_name(feature_shape: tuple[int, ...]) -> str:
    """Return the head that ``auto`` projects by: ``conv`` for images of more than 2x2 pixels, or ``mlp``."""
    image = len(feature_shape) == 3 and min(feature_shape[1:]) >= LEAST_SIDE
    return "conv" if image else "mlp"
