"""Layers shared by several models; some also serve as heads, from features to logits."""

from torch import Tensor, nn

from pipelocal.errors import UserError


def convolution(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """Build a convolution without bias, for BatchNorm and ReLU: output ``[B, O, H/stride, W/stride]``."""
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class PooledLinear(nn.Module):
    """Mean over all dimensions after the channels, then a linear map.

    Maps features ``[B, C, ...]`` to logits ``[B, classes]``; flat features ``[B, C]`` are not pooled.

    Raises:
        UserError: the features are tokens, whose channels come last.
    """

    def __init__(self, feature_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(feature_shape) == 2:
            raise UserError(
                f"a pooled head wants features [C] or [C, H, W], but these are tokens "
                f"{list(feature_shape)}: choose --head linear"
            )
        self.linear = nn.Linear(feature_shape[0], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(2).mean(2) if x.dim() > 2 else x)  # type: ignore[no-any-return]


class TokenLinear(nn.Module):
    """LayerNorm and a linear map of each token: ``[B, T, C]`` to ``[B, T, classes]``."""

    def __init__(self, feature_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        _, channels = feature_shape
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))  # type: ignore[no-any-return]
