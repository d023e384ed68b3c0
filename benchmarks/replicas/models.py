"""Models of three units of which the second one is slow, by what it computes or by what it waits for."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from pipelocal.data import ArrayDataset, DatasetEntry, data_info, load_dataset

CHANNELS = 64
WAIT_S = 0.03
SAMPLES, REPEATS = 768, 8


def _repeated(root: Path | None, seed: int) -> ArrayDataset:
    """Digits, eight times over, so that the end of an epoch, where replicas meet, comes seldom."""
    whole = load_dataset("digits", root=root, seed=seed)
    x, y = whole.train_x[:SAMPLES], whole.train_y[:SAMPLES]
    many = x.repeat(REPEATS, *[1] * (x.ndim - 1)), y.repeat(REPEATS)
    return replace(whole, train_x=many[0], train_y=many[1])


many_digits = DatasetEntry(replace(data_info("digits"), name="many-digits"), _repeated)


class Waiting(nn.Module):
    """Waits as for a disk or a remote service, without using the processor, and computes a little."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        time.sleep(self.seconds)
        out: Tensor = self.conv(x)
        return out.relu()


def _around(slow: nn.Module, channels: int, classes: int) -> nn.Sequential:
    first = nn.Sequential(nn.Conv2d(channels, CHANNELS, 3, padding=1), nn.ReLU())
    last = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU())
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, classes))
    return nn.Sequential(OrderedDict(first=first, slow=slow, last=last, classifier=classifier))


def computes(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The slow unit is four convolutions."""
    layers = [
        part for _ in range(4) for part in (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU())
    ]
    return _around(nn.Sequential(*layers), input_shape[0], classes)


def waits(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The slow unit waits for 30 ms in every forward pass."""
    return _around(Waiting(WAIT_S), input_shape[0], classes)
