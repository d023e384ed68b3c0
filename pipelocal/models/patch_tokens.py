"""The two ends of a vision transformer (arXiv 2010.11929), around its encoder layers.

Their parameters have the same names as in torchvision's ``VisionTransformer``.
"""

import torch
from torch import Tensor, nn


class Positions(nn.Module):
    """Adds the position embedding: ``[B, T, C]`` to ``[B, T, C]``."""

    def __init__(self, embedding: nn.Parameter, dropout: nn.Module) -> None:
        super().__init__()
        self.pos_embedding = embedding
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x + self.pos_embedding)  # type: ignore[no-any-return]


class PatchTokens(nn.Module):
    """Image ``[B, I, H, W]`` to tokens ``[B, 1 + N, C]``: the class token, then one per patch.

    Args:
        projection: maps images to ``[B, C, h, w]`` with ``h * w = N``.
        class_token: ``[1, 1, C]``.
        embedding: position embedding, ``[1, 1 + N, C]``.
        dropout: applied last.
    """

    def __init__(
        self,
        projection: nn.Module,
        class_token: nn.Parameter,
        embedding: nn.Parameter,
        dropout: nn.Module,
    ) -> None:
        super().__init__()
        self.conv_proj = projection
        self.class_token = class_token
        self.encoder = Positions(embedding, dropout)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        first = self.class_token.expand(x.shape[0], -1, -1)
        return self.encoder(torch.cat([first, patches], dim=1))  # type: ignore[no-any-return]


class ClassToken(nn.Module):
    """Selects the first of the tokens ``[B, T, C]``: ``[B, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]
