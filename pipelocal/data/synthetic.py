"""Made-up images for trials without data: to be asked for by name, never a stand-in."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelocal.data.dataset import ArrayDataset, DataInfo
from pipelocal.seeding import derive_seed

INFO = DataInfo(name="synthetic", sample_shape=(3, 32, 32), classes=10)
TRAIN_SAMPLES = 2048
TEST_SAMPLES = 512

_MAX_SHIFT = 8
_CLUTTER = 1.0
_PIXEL_NOISE = 0.5
_GREY_LEVELS_PER_UNIT = 32.0


def load(_root: Path | None, seed: int) -> ArrayDataset:
    """Ten classes of smooth coloured patterns; pattern and samples depend on ``seed`` alone.

    A sample is its class's pattern, moved by up to 8 pixels each way (round the border) and of
    random contrast, on clutter as smooth as the pattern itself, with noise on each pixel.
    """
    patterns = _smooth_fields(INFO.known_classes, _generator(seed, "patterns"))
    train_x, train_y = _draw(patterns, TRAIN_SAMPLES, _generator(seed, "train"))
    test_x, test_y = _draw(patterns, TEST_SAMPLES, _generator(seed, "test"))
    return ArrayDataset(
        info=INFO,
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        mean=(0.5, 0.5, 0.5),
        std=(0.19, 0.19, 0.19),
    )


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "synthetic", purpose))


def _smooth_fields(count: int, generator: torch.Generator) -> Tensor:
    """``[count, 3, 32, 32]`` float32, each of mean 0 and variance 1, about 4 pixels a feature."""
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    fields = F.interpolate(coarse, size=(32, 32), mode="bilinear", align_corners=False)
    return F.layer_norm(fields, INFO.sample_shape)


def _draw(patterns: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``[count, 3, 32, 32]`` uint8 and their classes ``[count]`` int64, as even as can be."""
    y = torch.randperm(count, generator=generator) % INFO.known_classes
    shifts = torch.randint(-_MAX_SHIFT, _MAX_SHIFT + 1, (2, count), generator=generator)
    contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    clutter = _smooth_fields(count, generator)
    noise = torch.randn(count, *INFO.sample_shape, generator=generator)
    signal = contrast * _rolled(patterns[y], shifts) + _CLUTTER * clutter + _PIXEL_NOISE * noise
    grey = 127.5 + _GREY_LEVELS_PER_UNIT * signal
    return grey.round().clamp(0, 255).to(torch.uint8), y


def _rolled(images: Tensor, shifts: Tensor) -> Tensor:
    """Each image moved by its own ``shifts[:, i]`` rows and columns, round the border."""
    side = torch.arange(images.shape[-1])
    rows = (side + shifts[0, :, None]) % len(side)
    columns = (side + shifts[1, :, None]) % len(side)
    samples = torch.arange(len(images))
    # Indices on both sides of the channel slice put the channels last.
    moved = images[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)
