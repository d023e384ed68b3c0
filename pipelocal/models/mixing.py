"""Layers of models whose values stay apart: by tokens, by groups of channels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Patches(nn.Module):
    """Images ``[B, I, H, W]`` to tokens ``[B, side * side, C]``, one for each patch, with all its pixels.

    Args:
        side: patches along each side, of which H and W are multiples.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, height, width = x.shape
        side = self.side
        patches = x.reshape(rows, channels, side, height // side, side, width // side)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(rows, side * side, -1)


class TokenMixing(nn.Module):
    """A linear map over the tokens, the same for each channel: ``[B, T, C]`` to ``[B, T', C]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        he_normal(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x + self.bias[:, None]


class GroupedLinear(nn.Module):
    """A linear map of each group of channels by itself: ``[B, ..., I]`` to ``[B, ..., O]``.

    The weight is ``[O, I / groups]``, as that of a convolution in groups.
    """

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups))
        self.bias = nn.Parameter(torch.zeros(outputs))
        he_normal(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.view(self.groups, -1, self.weight.shape[1])
        y = torch.einsum("...gi,goi->...go", in_groups(x, self.groups), weight)
        return y.flatten(-2) + self.bias


class GroupedLayerNorm(nn.Module):
    """Layer normalisation of each group of channels ``[B, ..., C]`` by itself, without parameters."""

    def __init__(self, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        grouped = in_groups(x, self.groups)
        return F.layer_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(-2)


class TokenMean(nn.Module):
    """The mean over the tokens: ``[B, T, C]`` to ``[B, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Residual(nn.Sequential):
    """Modules in a row, and past them what goes in: ``x + f(x)``."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  named so in torch
        return input + super().forward(input)  # type: ignore[no-any-return, no-untyped-call]


def in_groups(x: Tensor, groups: int) -> Tensor:
    """View ``[..., C]`` as ``[..., groups, C / groups]``."""
    return x.reshape(*x.shape[:-1], groups, -1)


def he_normal(weight: Tensor) -> None:
    """Draw a weight ``[O, I]`` for a layer with ReLU (He et al. 2015)."""
    nn.init.normal_(weight, std=math.sqrt(2 / weight.shape[1]))
