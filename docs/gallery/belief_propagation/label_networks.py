"""Networks that label the pixels of a mosaic, to be cut into two stages; most differ in stage 2 alone.

    unary     three convolutions, which see 7x7 pixels, and a label for each pixel by itself
    potts     the same, and belief propagation with a price for labels that differ
    edges     the same, where an edge weighs less the more the features across it differ
    deeper    seven convolutions, which see 15x15 pixels and take as long on a CPU, and no belief propagation
    levels    belief propagation at half the resolution in stage 1, and at the full one in stage 2, whose
              costs are in part what stage 1 believes; each level has its own loss (LevelHead)

All but ``levels`` have the units ``conv1``, ``conv2``, ``conv3`` and more, and the same stage 1 if cut at
``conv3``. Each is a function for ``--model label_networks.py:NAME``.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from beliefs import BeliefPropagation, EdgeWeights, Potts, cost_of
from torch import Tensor, nn

CHANNELS = 16
TEMPERATURE = 0.1
"""At the beginning. From 1, as in the source, a short training ends before it is low enough."""
LABELS = 5
"""Background and four kinds of things."""
CUTS = {
    "unary": "conv3",
    "potts": "conv3",
    "edges": "conv3",
    "deeper": "conv3",
    "levels": "fine",
}
"""The first unit of stage 2 of each network."""

Shape = tuple[int, ...]


def block(inputs: int, outputs: int = CHANNELS, stride: int = 1) -> nn.Sequential:
    """Return a convolution 3x3 with BatchNorm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def propagation(classes: int) -> BeliefPropagation:
    """Return the layer that all of them use."""
    return BeliefPropagation(Potts(classes), temperature=TEMPERATURE)


class Beliefs(nn.Module):
    """Features ``[B, C, H, W]`` to logits ``[B, K, H, W]``, by the neighbours' labels too.

    Args:
        channels: number C of the features.
        classes: number K of labels.
        edges: whether edges have weights, made of the features.
    """

    def __init__(self, channels: int, classes: int, *, edges: bool = False) -> None:
        super().__init__()
        self.unary = nn.Conv2d(channels, classes, 1)
        self.weights = EdgeWeights(channels) if edges else None
        self.propagation = propagation(classes)

    def forward(self, x: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights(x)
        logits: Tensor = self.propagation(cost_of(self.unary(x)), weights)
        return logits


class Coarse(nn.Module):
    """Images ``[B, 1, H, W]`` to beliefs ``[B, K, H / 2, W / 2]``, and the images beside them."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(block(channels, stride=2), block(CHANNELS))
        self.unary = nn.Conv2d(CHANNELS, classes, 1)
        self.propagation = propagation(classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cost = cost_of(self.unary(self.body(images)))
        return self.propagation.beliefs(cost), images


class LevelHead(nn.Module):
    """The head of a level: beliefs ``[B, K, h, w]`` to logits ``[B, K, H, W]``.

    Args:
        output_shape: ``[K, H, W]``.
    """

    def __init__(self, _features: Shape, _classes: int, *, output_shape: Shape) -> None:
        super().__init__()
        self.size = output_shape[1:]
        self.log_temperature = nn.Parameter(torch.tensor(TEMPERATURE).log())

    def forward(self, beliefs: Tensor) -> Tensor:
        return -F.interpolate(beliefs, self.size, mode="bilinear") / self.log_temperature.exp()


class Fine(nn.Module):
    """Beliefs of a coarser level and the images to costs ``[B, K, H, W]``.

    They are minus the probabilities of three convolutions' own labels, and half of what the coarser level
    believes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(block(channels), block(CHANNELS), block(CHANNELS))
        self.unary = nn.Conv2d(CHANNELS, classes, 1)

    def forward(self, passed: tuple[Tensor, Tensor]) -> Tensor:
        beliefs, images = passed
        cost = cost_of(self.unary(self.body(images)))
        return cost + 0.5 * F.interpolate(beliefs, images.shape[2:], mode="bilinear")


def unary(input_shape: Shape, classes: int) -> nn.Sequential:
    """Labels of pixels by themselves."""
    return _ended(_convolutions(input_shape, 3), nn.Conv2d(CHANNELS, classes, 1))


def potts(input_shape: Shape, classes: int) -> nn.Sequential:
    """Belief propagation with two parameters, and a temperature."""
    return _ended(_convolutions(input_shape, 3), Beliefs(CHANNELS, classes))


def edges(input_shape: Shape, classes: int) -> nn.Sequential:
    """Belief propagation with weights of edges."""
    return _ended(_convolutions(input_shape, 3), Beliefs(CHANNELS, classes, edges=True))


def deeper(input_shape: Shape, classes: int) -> nn.Sequential:
    """Four more convolutions in place of belief propagation."""
    return _ended(_convolutions(input_shape, 7), nn.Conv2d(CHANNELS, classes, 1))


def levels(input_shape: Shape, classes: int) -> nn.Sequential:
    """Belief propagation in both stages, from coarse to fine."""
    channels = input_shape[0]
    coarse, fine = Coarse(channels, classes), Fine(channels, classes)
    return _ended({"coarse": coarse, "fine": fine}, propagation(classes))


def _convolutions(input_shape: Shape, count: int) -> dict[str, nn.Module]:
    channels = [input_shape[0], *[CHANNELS] * count]
    return {f"conv{number}": block(channels[number - 1]) for number in range(1, count + 1)}


def _ended(units: dict[str, nn.Module], classifier: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(**units, classifier=classifier))
