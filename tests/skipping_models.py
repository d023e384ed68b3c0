"""Models of which several tensors cross a cut, for the digits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.models import Chain
from pipelocal.objective import Greedy, LocalPass, Place, Relay

UNITS = ["first", "second", "middle", "up_second", "up_first", "out"]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class UNet(nn.Module):
    """Two skips over the middle: one from the first block to the last, one within it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.second, self.middle = _block(1, 4), _block(4, 6), _block(6, 8)
        self.up_second, self.up_first = _block(8 + 6, 6), _block(6 + 4, 4)
        self.out = nn.Linear(4 * 64, classes)

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x)
        two = self.second(F.max_pool2d(one, 2))
        middle = self.middle(F.max_pool2d(two, 2))
        up = self.up_second(torch.cat([F.interpolate(middle, scale_factor=2.0), two], 1))
        up = self.up_first(torch.cat([F.interpolate(up, scale_factor=2.0), one], 1))
        logits: Tensor = self.out(up.flatten(1))
        return logits


def unet(shape: tuple[int, ...], classes: int) -> Chain:
    return Chain.from_module(UNet(classes), units=UNITS, input_shape=shape)


class SeesEarlier(Greedy):
    """Wants the image at every stage, and what the first stage made at the third."""

    figure_names = ("brightness", "first")

    def __init__(self, place: Place) -> None:
        assert place.stages == 4

    @staticmethod
    def relays(stages: int) -> list[Relay]:
        return [Relay(name="image", of=0, until=stages), Relay(name="first", of=1, until=3)]

    def loss(self, local: LocalPass, out: Tensor) -> Tensor:
        image = local.relayed["image"]
        assert image.shape[1:] == (1, 8, 8)
        first = local.relayed.get("first")
        self.figures["brightness"] = image.mean()
        self.figures["first"] = image.new_zeros(()) if first is None else first.mean()
        return super().loss(local, out) + 0.1 * (out.mean() - image.mean()).square()


class Into(nn.Module):
    """Changes the dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


def _half(classes: int, dtype: torch.dtype) -> nn.Sequential:
    layers = [nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(2)]
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 32))
    return nn.Sequential(Into(dtype), first, *layers, nn.Linear(32, classes)).to(dtype)


def bfloat16(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    return _half(classes, torch.bfloat16)


def float16(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    return _half(classes, torch.float16)
