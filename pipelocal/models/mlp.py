"""A multi-layer perceptron over flattened samples."""

import math
from functools import partial

from torch import nn

from pipelocal.models.chain import Chain
from pipelocal.models.unit import Shape, Unit

HIDDEN_LAYERS = 6
WIDTH = 256


def _layer(inputs: int, *, first: bool) -> nn.Module:
    linear = nn.Linear(inputs, WIDTH)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    nn.init.zeros_(linear.bias)
    layers: list[nn.Module] = [linear, nn.BatchNorm1d(WIDTH), nn.ReLU()]
    return nn.Sequential(*([nn.Flatten()] if first else []), *layers)


def mlp(input_shape: Shape, classes: int) -> Chain:
    """Build six hidden layers of 256 units, with BatchNorm and ReLU, and a linear classifier."""
    features = math.prod(input_shape)
    units = [
        Unit(
            name=f"layer{i + 1}",
            build=partial(_layer, features if i == 0 else WIDTH, first=i == 0),
        )
        for i in range(HIDDEN_LAYERS)
    ]
    classifier = Unit(name="classifier", build=lambda: nn.Linear(WIDTH, classes))
    return Chain(units, classifier=classifier, input_shape=input_shape, classes=classes)
