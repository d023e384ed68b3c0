"""Models of which several tensors cross a cut, as users write them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.Dropout(0.1),
    )


class UNet(nn.Module):
    """Two skips from the way down to the way up, cropped or padded to fit."""

    UNITS = ("down1", "down2", "middle", "up2", "merge2", "up1", "merge1", "out")

    def __init__(self, channels: int = 3, classes: int = 4, width: int = 4) -> None:
        super().__init__()
        self.down1 = _double(channels, width)
        self.down2 = _double(width, 2 * width)
        self.pool = nn.MaxPool2d(2)
        self.middle = _double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.merge2 = _double(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.merge1 = _double(2 * width, width)
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        one = self.down1(x)
        two = self.down2(self.pool(one))
        x = self.middle(self.pool(two))
        for up, merge, skip in ((self.up2, self.merge2, two), (self.up1, self.merge1, one)):
            x = up(x)
            right, below = skip.size(3) - x.size(3), skip.size(2) - x.size(2)
            if right or below:
                x = F.pad(x, [0, right, 0, below])
            x = merge(torch.cat([skip, x], dim=1))
        return F.interpolate(self.out(x), size)


class Layer(nn.Module):
    """Attention and a feed-forward part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        heads = mask.repeat_interleave(2, 0)
        x = self.norm(x + self.attention(x, x, x, attn_mask=heads, need_weights=False)[0])
        return x + F.relu(self.inner(x)), None


class Encoder(nn.Module):
    """Takes tokens and which of them count; builds a mask of pairs, and the mean over what counts."""

    UNITS = ("embed", "layers.0", "layers.1", "layers.2", "out")

    def __init__(self, vocabulary: int = 20, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(16, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(3))
        self.out = nn.Linear(width, classes)

    def forward(self, ids: Tensor, attention_mask: Tensor, scale: float = 1.0) -> dict[str, Any]:
        rows, length = ids.shape
        positions = torch.arange(length, device=ids.device)
        hidden = self.embed(ids) * scale + self.places(positions)
        pairs = (attention_mask[:, None, :] == 0).expand(rows, length, length)
        for layer in self.layers:
            hidden, _ = layer(hidden, pairs)
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return {"logits": self.out((hidden * weights).sum(1) / weights.sum(1)), "loss": None}


class Decoder(nn.Module):
    """A language model whose output shares the table of its input."""

    UNITS = ("embed", "first", "second", "out")

    def __init__(self, vocabulary: int = 12, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, vocabulary, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embed(ids) + positions[None, :, None] / 10
        x = self.first(x) + positions.unsqueeze(-1)
        return self.out(self.second(x) / positions.add(1).unsqueeze(-1))  # type: ignore[no-any-return]
