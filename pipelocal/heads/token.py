"""Heads for features ``[B, T, C]``: one prediction per token, or one for the whole sequence.

Pre-norm blocks do not normalise their output, so each of these heads starts with its own norm.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.models.layers import token_channels


class TokenMLP(nn.Module):
    """LayerNorm and one hidden layer, for each token: ``[B, T, C]`` to ``[B, T, classes]``."""

    def __init__(self, feature_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels = token_channels("token-mlp", feature_shape)
        self.norm = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.gelu(self.hidden(self.norm(x))))  # type: ignore[no-any-return]


class TokenMeanLinear(nn.Module):
    """Mean over the tokens, LayerNorm and a linear map: ``[B, T, C]`` to ``[B, classes]``."""

    def __init__(self, feature_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels = token_channels("token-mean", feature_shape)
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x.mean(1)))  # type: ignore[no-any-return]


def pooled_features(x: Tensor) -> Tensor:
    """Reduce to one vector per sample: ``[B, C]``, ``[B, T, C]`` or ``[B, C, ...]`` to ``[B, C]``."""
    if x.dim() == 2:
        return x
    return x.mean(1) if x.dim() == 3 else x.flatten(2).mean(2)
