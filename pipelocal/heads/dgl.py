"""The head "MLP-SR" of Decoupled Greedy Learning (arXiv 1901.08164): cheap, as it first shrinks the map."""

import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.heads.shapes import are_maps, check_images


def dgl(
    feature_shape: tuple[int, ...], classes: int, *, output_shape: tuple[int, ...] = ()
) -> nn.Module:
    """Build the head for images.

    Args:
        feature_shape: ``[C, H, W]``.
        classes: number of outputs.
        output_shape: ``[classes]``.

    Raises:
        UserError: the features are not images, or every pixel has an output of its own.
    """
    check_images("dgl", feature_shape)
    if are_maps(feature_shape, output_shape):
        raise UserError(
            f"head 'dgl' makes one answer for all pixels, but the task wants outputs {list(output_shape)}: "
            f"choose --head conv"
        )
    return DGLHead(feature_shape, classes)


class DGLHead(nn.Module):
    """Three pointwise convolutions on the map at a quarter of its size, then three fully connected layers.

    ::

        [B, C, H, W]   mean pooling to a quarter of each side, rounded up
        three times    1x1 convolution C to C, BatchNorm, ReLU
                       mean pooling to 2 x 2, flattened: [B, 4C]
        twice          linear 4C to 4C, BatchNorm, ReLU
                       linear: [B, classes]

    None but the last has a bias. BatchNorm of vectors needs at least two samples in a batch.

    Args:
        feature_shape: ``[C, H, W]``.
        classes: number of outputs.
    """

    def __init__(self, feature_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = feature_shape
        wide = 4 * channels
        self.size = (-(-height // 4), -(-width // 4))
        self.mix = nn.Sequential(
            *(
                layer
                for _ in range(3)
                for layer in (
                    nn.Conv2d(channels, channels, 1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                )
            )
        )
        self.hidden = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (nn.Linear(wide, wide, bias=False), nn.BatchNorm1d(wide), nn.ReLU())
            )
        )
        self.linear = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(F.adaptive_avg_pool2d(x, self.size))
        return self.linear(self.hidden(F.adaptive_avg_pool2d(x, 2).flatten(1)))  # type: ignore[no-any-return]
