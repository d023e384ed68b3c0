"""Small models for forward gradients, named by tests as ``tests.forward_gradient.models:function``."""

from torch import nn

from pipelocal.models import Chain, Shape, local_mixer


def mixer(shape: Shape, classes: int) -> Chain:
    """A small LocalMixer of four blocks."""
    return local_mixer(shape, classes, blocks=4, side=2, groups=2, width=16)


def dense(shape: Shape, classes: int) -> nn.Sequential:
    """Layers of different widths, so that the classifier is no head of the first stage."""
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.LayerNorm(24), nn.ReLU()),
        nn.Sequential(nn.Linear(24, 16), nn.Tanh()),
        nn.Linear(16, classes),
    )


def gelu(shape: Shape, classes: int) -> nn.Sequential:
    """Has an activation without a formula."""
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU()), nn.Linear(8, classes)
    )
