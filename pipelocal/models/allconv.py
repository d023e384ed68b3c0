"""A plain all-convolutional network, after Springenberg et al. 2015 (arXiv 1412.6806).

::

    conv1..conv2  32 channels, full size
    conv3..conv5  64 channels, half size
    conv6..conv8  128 channels, quarter size
    classifier    mean over space, linear

It has no pooling and no shortcuts: every unit is one 3x3 convolution with BatchNorm and ReLU, so that a
stage can be a single layer. Unlike the paper's, its convolutions are followed by BatchNorm, and the
classifier is linear.
"""

from functools import partial

from torch import nn

from pipelocal.models.chain import Chain
from pipelocal.models.layers import PooledLinear, convolution
from pipelocal.models.unit import Shape, Unit

WIDTHS = (32, 32, 64, 64, 64, 128, 128, 128)


def _layer(inputs: int, outputs: int, *, stride: int) -> nn.Module:
    """Build a layer from ``[B, I, H, W]`` to ``[B, O, H/stride, W/stride]``."""
    conv = convolution(inputs, outputs, stride=stride)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def allconv(input_shape: Shape, classes: int) -> Chain:
    """Build eight 3x3 convolutions, two of them with stride 2, and a pooled linear classifier."""
    units = []
    inputs = input_shape[0]
    for i, outputs in enumerate(WIDTHS):
        stride = 2 if i > 0 and outputs != WIDTHS[i - 1] else 1
        build = partial(_layer, inputs, outputs, stride=stride)
        units.append(Unit(name=f"conv{i + 1}", build=build))
        inputs = outputs
    classifier = Unit(name="classifier", build=partial(PooledLinear, (WIDTHS[-1], 1, 1), classes))
    return Chain(units, classifier=classifier, input_shape=input_shape, classes=classes)
