"""Heads whose weights are drawn once and never trained.

The body has to bring its features to where the head already looks for each class. The weights are
buffers: they are saved and moved with the stage, and no optimizer, gradient or weight decay meets
them. There is no bias, which would favour some classes for good.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.heads.token import pooled_features


class FixedPooledLinear(nn.Module):
    """Mean over everything behind the channels, then a fixed random linear map.

    Features ``[B, C, ...]`` to logits ``[B, classes]``, float32; flat features ``[B, C]`` are not
    pooled. Entries have the variance 1 / C, so that logits are about as large as features.

    Args:
        channels: C.
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
    """The same of tokens: their mean, normalised, as blocks with pre-norm leave it without a norm.

    Features ``[B, T, C]`` to logits ``[B, classes]``.
    """

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1)
        return F.linear(F.layer_norm(mean, mean.shape[1:]), self.weight)


def linear_fixed(feature_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A fixed random linear map of the features' mean, over space or over tokens.

    Args:
        feature_shape: ``[C, ...]``, or tokens ``[T, C]``.
        classes: number of classes.
    """
    if len(feature_shape) == 2:
        return FixedTokenMeanLinear(feature_shape[1], classes)
    return FixedPooledLinear(feature_shape[0], classes)
