"""CIFAR-style residual networks of depth 6n + 2 (He et al. 2016, arXiv 1512.03385, section 4.2).

::

    stem            3x3 convolution to 16 channels
    block1..n       16 channels, full size
    block(n+1)..2n  32 channels, half size
    block(2n+1)..3n 64 channels, quarter size
    classifier      mean over space, linear

The stem and each block are units. Shortcuts that change shape are 1x1 convolutions (the paper's
option B) rather than padded zeros, so that every unit is an ordinary module.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.models.chain import Chain
from pipelocal.models.layers import PooledLinear, convolution
from pipelocal.models.unit import Shape, Unit

WIDTHS = (16, 32, 64)


class Stem(nn.Module):
    """The first convolution: image ``[B, C, H, W]`` to ``[B, 16, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = convolution(channels, WIDTHS[0])
        self.norm = nn.BatchNorm2d(WIDTHS[0])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``[B, I, H, W]`` to ``[B, O, H/stride, W/stride]``."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, stride=stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                convolution(inputs, outputs, size=1, stride=stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


def resnet(depth: int, input_shape: Shape, classes: int) -> Chain:
    """Build the residual network with ``depth`` weighted layers, ``depth = 6n + 2``."""
    blocks_per_width, rest = divmod(depth - 2, 6)
    assert rest == 0, f"depth must be 6n + 2, not {depth}"
    channels = input_shape[0]
    units = [Unit(name="stem", build=partial(Stem, channels))]
    inputs = WIDTHS[0]
    for outputs in WIDTHS:
        for i in range(blocks_per_width):
            stride = 2 if i == 0 and outputs != WIDTHS[0] else 1
            build = partial(BasicBlock, inputs, outputs, stride=stride)
            units.append(Unit(name=f"block{len(units)}", build=build))
            inputs = outputs
    classifier = Unit(name="classifier", build=partial(PooledLinear, (WIDTHS[-1], 1, 1), classes))
    return Chain(units, classifier=classifier, input_shape=input_shape, classes=classes)
