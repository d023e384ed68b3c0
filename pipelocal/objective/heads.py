"""Auxiliary heads: what turns a stage's output into logits for its local loss.

A head is thrown away when the model is exported; the last stage has none of these but the model's
own classifier.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.registry import Registry

HeadBuilder = Callable[[tuple[int, ...], int], nn.Module]
"""Called with the shape of one feature (no batch dimension) and the number of classes."""

HEADS: Registry[HeadBuilder] = Registry("head")


@HEADS.register("linear")
class PooledLinear(nn.Module):
    """Mean over everything behind the channels, then a linear map.

    Features ``[B, C, ...]`` to logits ``[B, classes]``; flat features ``[B, C]`` are not pooled.
    """

    def __init__(self, feature_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_shape[0], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(2).mean(2) if x.dim() > 2 else x)  # type: ignore[no-any-return]


@HEADS.register("conv")
class ConvHead(nn.Module):
    """A 3x3 convolution with BatchNorm and ReLU before the pooled linear map.

    Features ``[B, C, H, W]`` to logits ``[B, classes]``.

    Raises:
        UserError: the features are no images.
    """

    def __init__(self, feature_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(feature_shape) != 3:
            raise UserError(
                f"head 'conv' wants features [C, H, W], but this stage makes {list(feature_shape)}: "
                f"choose --head linear"
            )
        channels = feature_shape[0]
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pooled = PooledLinear(feature_shape, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(F.relu(self.norm(self.conv(x))))  # type: ignore[no-any-return]
