"""The models of the study: a minute a run on one core, and enough units for nine stages.

They are given by reference, from the repository's root: ``--model benchmarks/reconciliation/models.py:cnn``.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from pipelocal.models import Chain
from pipelocal.models.layers import PooledLinear
from pipelocal.models.resnet import BasicBlock
from pipelocal.models.unit import Shape, Unit

WIDTHS, BLOCKS = (16, 32, 64), 9
"""Of the CNN."""

DIMENSION, ATTENTION_HEADS, LAYERS, SIDE = 64, 4, 7, 4
"""Of the ViT: width, heads, encoder layers, and patches along a side."""


def cnn(input_shape: Shape, classes: int) -> Chain:
    """Build a residual network on half the image's size: a stem with stride 2, and three blocks a width."""
    units = [Unit(name="stem", build=partial(_stem, input_shape[0]))]
    inputs = WIDTHS[0]
    for place in range(BLOCKS):
        outputs = WIDTHS[place * len(WIDTHS) // BLOCKS]
        build = partial(BasicBlock, inputs, outputs, stride=1 if outputs == inputs else 2)
        units.append(Unit(name=f"block{place + 1}", build=build))
        inputs = outputs
    classifier = Unit(name="classifier", build=partial(PooledLinear, (inputs, 1, 1), classes))
    return Chain(units, classifier=classifier, input_shape=input_shape, classes=classes)


def _stem(channels: int) -> nn.Module:
    conv = nn.Conv2d(channels, WIDTHS[0], 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())


def vit(input_shape: Shape, classes: int) -> Chain:
    """Build a vision transformer of constant width, on 4 by 4 patches, without dropout."""
    units = [Unit(name="patches", build=partial(Patches, input_shape))]
    units += [Unit(name=f"layer{place + 1}", build=_layer) for place in range(LAYERS)]
    classifier = Unit(name="classifier", build=partial(Readout, classes))
    return Chain(units, classifier=classifier, input_shape=input_shape, classes=classes)


def _layer() -> nn.Module:
    return nn.TransformerEncoderLayer(
        DIMENSION,
        ATTENTION_HEADS,
        4 * DIMENSION,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )


class Patches(nn.Module):
    """Image ``[B, C, H, W]`` to tokens ``[B, T, DIMENSION]``, with learnt positions."""

    def __init__(self, input_shape: Shape) -> None:
        super().__init__()
        channels, height, _ = input_shape
        size = height // SIDE
        self.project = nn.Conv2d(channels, DIMENSION, size, stride=size)
        self.position = nn.Parameter(0.02 * torch.randn(SIDE**2, DIMENSION))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).transpose(1, 2) + self.position  # type: ignore[no-any-return]


class Readout(nn.Module):
    """Norm, mean over the tokens, linear: ``[B, T, DIMENSION]`` to logits ``[B, classes]``."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIMENSION)
        self.linear = nn.Linear(DIMENSION, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x).mean(1))  # type: ignore[no-any-return]
