"""Heads that answer for a sample (by the features' mean over space or tokens), for a token or for a pixel."""

import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.heads.maps import MapLinear, are_maps, map_mlp
from pipelocal.heads.token import TokenMeanLinear, TokenMLP, pooled_features
from pipelocal.models.layers import PooledLinear, TokenLinear


def linear(
    feature_shape: tuple[int, ...], classes: int, *, output_shape: tuple[int, ...] = ()
) -> nn.Module:
    """Build a linear map of the features' mean, over space or over tokens: logits ``[B, classes]``.

    If every token or pixel has an output of its own, the linear map is applied to each.
    """
    if are_maps(feature_shape, output_shape):
        return MapLinear(feature_shape[0], output_shape)
    if len(feature_shape) != 2:
        return PooledLinear(feature_shape, classes)
    return (TokenLinear if len(output_shape) == 2 else TokenMeanLinear)(feature_shape, classes)


def mlp(
    feature_shape: tuple[int, ...], classes: int, *, output_shape: tuple[int, ...] = ()
) -> nn.Module:
    """Build a head like :func:`linear`, with one hidden layer before the linear map."""
    if are_maps(feature_shape, output_shape):
        return map_mlp(feature_shape[0], output_shape)
    per_token = len(output_shape) == 2 and len(feature_shape) == 2
    return (TokenMLP if per_token else MLPHead)(feature_shape, classes)


class ConvHead(nn.Module):
    """A 3x3 convolution with BatchNorm and ReLU before the linear map, pooled or of each pixel.

    Maps features ``[B, C, H, W]`` to logits ``[B, classes]``, or to maps ``[B, classes, H, W]``.

    Raises:
        UserError: the features are not images.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        classes: int,
        *,
        output_shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if len(feature_shape) != 3:
            raise UserError(
                f"head 'conv' wants features [C, H, W], but this stage makes {list(feature_shape)}: "
                f"choose --head linear"
            )
        channels = feature_shape[0]
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        maps = are_maps(feature_shape, output_shape)
        self.pooled = (
            MapLinear(channels, output_shape) if maps else PooledLinear(feature_shape, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(F.relu(self.norm(self.conv(x))))  # type: ignore[no-any-return]


class MLPHead(nn.Module):
    """Mean of the features, one hidden layer as wide as the channels, and a linear map.

    Maps features ``[B, C]``, ``[B, T, C]`` or ``[B, C, H, W]`` to logits ``[B, classes]``.
    """

    def __init__(self, feature_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels = feature_shape[-1] if len(feature_shape) == 2 else feature_shape[0]
        self.norm = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.hidden(self.norm(pooled_features(x))))
        return self.linear(hidden)  # type: ignore[no-any-return]
