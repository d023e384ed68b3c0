"""A head like ``linear``, with a norm and a hidden layer, as wide as the channels, before the linear map."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.heads.maps import MapLinear
from pipelocal.heads.shapes import are_maps, channels_of, per_token, pooled_features


def mlp(
    feature_shape: tuple[int, ...], classes: int, *, output_shape: tuple[int, ...] = ()
) -> nn.Module:
    """Build norm, hidden layer, GELU and a linear map, of the mean or of each token or pixel, as ``linear``.

    Args:
        feature_shape: ``[C]``, tokens ``[T, C]`` or ``[C, H, W]``.
        classes: number of outputs.
        output_shape: ``[classes]``, or with T or H and W too.
    """
    channels = channels_of(feature_shape)
    if are_maps(feature_shape, output_shape):
        return nn.Sequential(
            OrderedDict(
                norm=nn.GroupNorm(1, channels),
                hidden=nn.Conv2d(channels, channels, 1),
                act=nn.GELU(),
                maps=MapLinear(channels, output_shape),
            )
        )
    return MLPHead(channels, classes, pooled=not per_token(feature_shape, output_shape))


class MLPHead(nn.Module):
    """LayerNorm, one hidden layer and a linear map, of the features' mean or of each token.

    Maps features ``[B, C]``, ``[B, T, C]`` or ``[B, C, H, W]`` to logits ``[B, classes]``, or tokens
    ``[B, T, C]`` to ``[B, T, classes]``.

    Args:
        channels: number of channels C.
        classes: number of outputs.
        pooled: whether of the mean.
    """

    def __init__(self, channels: int, classes: int, *, pooled: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, channels)
        self.linear = nn.Linear(channels, classes)
        self._pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        x = pooled_features(x) if self._pooled else x
        return self.linear(F.gelu(self.hidden(self.norm(x))))  # type: ignore[no-any-return]
