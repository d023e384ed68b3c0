"""Heads whose weights are drawn once and never trained.

The body must learn features that match the head's fixed direction for each class. The weights are
buffers: they are saved and moved with the stage, and no optimizer, gradient or weight decay touches
them. There is no bias, which would permanently favour some classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.heads.shapes import pooled_features


class FixedPooledLinear(nn.Module):
    """Mean over all dimensions after the channels, then a fixed random linear map.

    Maps features ``[B, C, ...]`` to logits ``[B, classes]``, float32; flat features ``[B, C]`` are not
    pooled. Entries have variance 1 / C, so that logits are about as large as features.

    Args:
        channels: number of channels C.
        classes: number of classes.
    """

    weight: Tensor
    """``[classes, C]``, float32."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(classes, channels) / channels**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(pooled_features(x), self.weight)


class FixedTokenMeanLinear(FixedPooledLinear):
    """Normalised mean over the tokens, as pre-norm blocks do not normalise, then a fixed random linear map.

    Maps features ``[B, T, C]`` to logits ``[B, classes]``.
    """

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1)
        return F.linear(F.layer_norm(mean, mean.shape[1:]), self.weight)


def linear_fixed(feature_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build a fixed random linear map of the features' mean, over space or over tokens.

    Args:
        feature_shape: ``[C, ...]``, or tokens ``[T, C]``.
        classes: number of classes.
    """
    if len(feature_shape) == 2:
        return FixedTokenMeanLinear(feature_shape[1], classes)
    return FixedPooledLinear(feature_shape[0], classes)
