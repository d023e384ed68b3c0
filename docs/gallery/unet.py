"""Segmentation with a U-Net, cut where its skips are alive.

Discs and squares in noisy images are to be found, pixel by pixel; their outlines are void and do not count.
The four stages are cut inside the U: what `down1` makes travels beside the main tensor up to `up1`.
Trained whole by back-propagation, with the same settings, the net reaches 0.938.

    python docs/gallery/unet.py
    torchrun --standalone --nproc-per-node 2 docs/gallery/unet.py

Both print {"mean_iou": 0.922}.
"""

import json

import pipelocal as pl
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

VOID, SIZE = 255, 32


def scenes(count: int, seed: int) -> TensorDataset:
    """Images [count, 1, SIZE, SIZE], and labels [count, SIZE, SIZE]: 1 in a disc, 2 in a square."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 2, 2, 1, 1, generator=generator) * (SIZE - 12) + 6
    at = torch.arange(SIZE)
    down, across = (centres[:, 0] - at[:, None]).abs(), (centres[:, 1] - at).abs()
    disc = torch.hypot(down[:, 0], across[:, 0]) - 6  # distance to the outline
    square = torch.maximum(down[:, 1], across[:, 1]) - 5
    images = (disc < 0).float() - (square < 0).float()
    labels = torch.where(square < 0, 2, torch.where(disc < 0, 1, 0))
    labels[torch.minimum(disc.abs(), square.abs()) < 0.5] = VOID
    noise = torch.randn(images.shape, generator=generator)
    return TensorDataset((images + 0.5 * noise)[:, None], labels)


def block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Up(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.block = block(2 * outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat([self.up(x), skip], 1))


class UNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.down1, self.down2, self.middle = block(1, 8), block(8, 16), block(16, 32)
        self.up2, self.up1, self.out = Up(32, 16), Up(16, 8), nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip1 = self.down1(x)
        skip2 = self.down2(self.pool(skip1))
        x = self.middle(self.pool(skip2))
        return self.out(self.up1(self.up2(x, skip2), skip1))


torch.manual_seed(0)  # the same weights on every rank
units = ["down1", "down2", "middle", "up2", "up1", "out"]
net = pl.Chain.from_module(UNet(classes=3), units=units, input_shape=(1, SIZE, SIZE))
pipe = pl.Pipeline(
    net,
    cut=["down2", "up2", "up1"],
    task=pl.tasks.Segmentation(classes=3, ignore_index=VOID),
    optimizer=lambda named: torch.optim.Adam([p for _, p in named], lr=0.03),
    schedule="cosine",
)
summary = pipe.fit(scenes(320, seed=0), scenes(80, seed=1), epochs=4, batch_size=16)
print(json.dumps({"mean_iou": round(summary["eval"]["mean_iou"], 3)}))
