"""One convolution and two fully connected layers: the "1c2f" head of InfoPro (arXiv 2101.10832).

With stride 2 the convolution doubles the channels at half the price of one that keeps size and channels.
(Behind the last width of its ResNets for CIFAR InfoPro keeps both. Here the form is the same everywhere.)
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.heads.maps import MapLinear
from pipelocal.heads.shapes import are_maps, check_images

HIDDEN = 128
"""Width of the first fully connected layer."""


def conv(
    feature_shape: tuple[int, ...], classes: int, *, output_shape: tuple[int, ...] = ()
) -> nn.Module:
    """Build the head for images; for maps, a convolution at the stage's own size, then linear for each pixel.

    Args:
        feature_shape: ``[C, H, W]``.
        classes: number of outputs.
        output_shape: ``[classes]``, or ``[classes, H, W]``.

    Raises:
        UserError: the features are not images.
    """
    check_images("conv", feature_shape)
    if are_maps(feature_shape, output_shape):
        return MapConv(feature_shape[0], output_shape)
    return ConvHead(feature_shape[0], classes)


class ConvHead(nn.Module):
    """3x3 convolution with stride 2 from C to 2C channels, norm, ReLU, mean, linear to 128, ReLU, linear.

    Maps features ``[B, C, H, W]`` to logits ``[B, classes]``.

    Args:
        channels: number of channels C.
        classes: number of outputs.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.hidden = nn.Linear(2 * channels, HIDDEN)
        self.linear = nn.Linear(HIDDEN, classes)

    def forward(self, x: Tensor) -> Tensor:
        mean = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.linear(F.relu(self.hidden(mean)))  # type: ignore[no-any-return]


class MapConv(nn.Module):
    """3x3 convolution, norm and ReLU before a linear map of each pixel.

    Maps features ``[B, C, h, w]`` to ``[B, classes, H, W]``.

    Args:
        channels: number of channels C.
        output_shape: ``[classes, H, W]``.
    """

    def __init__(self, channels: int, output_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.maps = MapLinear(channels, output_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(F.relu(self.norm(self.conv(x))))  # type: ignore[no-any-return]
