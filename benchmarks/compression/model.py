"""A small convolutional network without BatchNorm, whose statistics skewed replicas would not share."""

from torch import nn


def groupnorm_cnn(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Four units of convolution, GroupNorm and ReLU on images, three of them with stride 2."""
    return nn.Sequential(
        _unit(input_shape[0], 16, stride=2),
        _unit(16, 32, stride=2),
        _unit(32, 32, stride=1),
        _unit(32, 64, stride=2),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)),
    )


def _unit(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(4, outputs),
        nn.ReLU(),
    )
