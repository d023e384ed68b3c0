"""A head of the study's own: a hidden layer at every place before the mean over places.

It is given by reference, from the repository's root: ``--head benchmarks/reconciliation/heads.py:relu_pool``.
Said to be the head of the paper (arXiv 2406.05222), which could not be verified. Behind it, unlike behind a
pooled linear head, delta varies over the places.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipelocal.models.layers import PooledLinear


def relu_pool(feature_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build a 1x1 convolution, ReLU, the mean over space, and a linear map.

    For tokens the convolution is a linear map of each, behind a norm.

    Args:
        feature_shape: ``[C, H, W]``, or tokens ``[T, C]``.
        classes: number of classes.
    """
    if len(feature_shape) == 2:
        channels = feature_shape[1]
        hidden = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.ReLU())
        return nn.Sequential(hidden, _Mean(), nn.Linear(channels, classes))
    channels = feature_shape[0]
    hidden = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU())
    return nn.Sequential(hidden, PooledLinear(feature_shape, classes))


class _Mean(nn.Module):
    """Mean over tokens: ``[B, T, C]`` to ``[B, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)
