"""The cheapest head: the features' mean and a linear map, the "greedy" of InfoPro (arXiv 2101.10832).

What it is follows from the shapes::

    [C], [C, H, W]           mean over space, linear
    [T, C]                   mean over the tokens, norm, linear
    [T, C], one each         norm, linear of each token
    [C, H, W], one each      linear of each pixel, interpolated to the output's size

Blocks with pre-norm do not normalise what they pass on, so heads over tokens begin with a norm of their own.
"""

from torch import Tensor, nn

from pipelocal.heads.maps import MapLinear
from pipelocal.heads.shapes import are_maps, per_token
from pipelocal.models.layers import PooledLinear, TokenLinear


def linear(
    feature_shape: tuple[int, ...], classes: int, *, output_shape: tuple[int, ...] = ()
) -> nn.Module:
    """Build a linear map of the features' mean; or of each token or pixel, if each has an output of its own.

    Args:
        feature_shape: ``[C]``, tokens ``[T, C]`` or ``[C, H, W]``.
        classes: number of outputs.
        output_shape: ``[classes]``, or with T or H and W too.
    """
    if are_maps(feature_shape, output_shape):
        return MapLinear(feature_shape[0], output_shape)
    if len(feature_shape) != 2:
        return PooledLinear(feature_shape, classes)
    if per_token(feature_shape, output_shape):
        return TokenLinear(feature_shape, classes)
    return TokenMeanLinear(feature_shape, classes)


class TokenMeanLinear(TokenLinear):
    """Mean over the tokens, LayerNorm and a linear map: ``[B, T, C]`` to ``[B, classes]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(1))
