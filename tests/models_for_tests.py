"""Models that tests name on the command line as ``models_for_tests.py:function``."""

import os
import random
import signal
import time
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

WIDE = 12_288
"""Features of a stage's output in :func:`wide`: 720 rows of float32 are 33.75 MiB."""

EDGE_CASE_FLAG = "PIPELOCAL_TEST_FLAG"
"""Names a file whose existence switches the misbehaviour of a unit on; another one, ``.begun``, follows."""


def _sequential(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict((f"u{i + 1}", module) for i, module in enumerate(modules)))


def _layer(inputs: int, outputs: int, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), *more)


def _first(outputs: int, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *_layer(64, outputs, *more))


def dropout(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Every unit draws random numbers while training."""
    layers = [_layer(32, 32, nn.Dropout(0.3)) for _ in range(3)]
    return _sequential(_first(32, nn.Dropout(0.3)), *layers, nn.Linear(32, classes))


def identity(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Units whose output is their input: the same memory under another name."""
    return _sequential(
        _first(32), nn.Identity(), nn.Flatten(), _layer(32, 32), nn.Linear(32, classes)
    )


def inplace(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Units that begin with an activation that asks to work in place, and such a classifier."""
    layers = [nn.Sequential(nn.ReLU(inplace=True), nn.Linear(32, 32)) for _ in range(3)]
    classifier = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(32, classes))
    return _sequential(_first(32), *layers, classifier)


class Jitter(nn.Module):
    """Takes its time, now and then."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(random.choice([0.0, 0.0, 0.0, 0.03]))
        return x


def jitter(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Stages of ever changing speed."""
    layers = [_layer(32, 32, Jitter()) for _ in range(3)]
    return _sequential(_first(32, Jitter()), *layers, nn.Linear(32, classes))


class Widen(nn.Module):
    """``[B, n]`` to ``[B, WIDE]`` at little cost: the message is large, the work is small."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, WIDE // x.shape[1])


class Narrow(nn.Module):
    """``[B, WIDE]`` to ``[B, 32]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, 32).mean(1)


def wide(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Stages that send 33.75 MiB for a batch of 720."""
    layers = [nn.Sequential(Narrow(), *_layer(32, 32), Widen()) for _ in range(3)]
    return _sequential(
        _first(32, Widen()), *layers, nn.Sequential(Narrow(), nn.Linear(32, classes))
    )


class Misbehave(nn.Module):
    """Passes its input on until the flag file appears, then does what that file says."""

    def forward(self, x: Tensor) -> Tensor:
        flag = os.environ.get(EDGE_CASE_FLAG)
        if not (flag and x.device.type == "cpu" and Path(flag).exists()):
            return x
        what = Path(flag).read_text()
        Path(f"{flag}.begun").touch()
        if what == "raise":
            raise ZeroDivisionError("the unit was told to fail")
        if what == "nan":
            return x * torch.nan
        if what == "exit":
            os._exit(7)
        if what == "sleep":
            time.sleep(1000)
        if what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        return x


def wide_misbehaving(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """:func:`wide`, where every unit may be told to misbehave by the rank's environment."""
    *layers, classifier = wide(shape, classes).children()
    return _sequential(*(nn.Sequential(Misbehave(), layer) for layer in layers), classifier)


class SelfAttention(nn.Module):
    """One attention layer over two tokens of 16 features; has no double backward by default."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(-1, 2, 16)
        out: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return out.flatten(1)


def attention(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """A model that exact reconciliation cannot go through in its third unit."""
    return _sequential(
        _first(32), _layer(32, 32), SelfAttention(), _layer(32, 32), nn.Linear(32, classes)
    )


class Repeat(nn.Module):
    """``[B, 64]`` to ``[B, times * 64]``, with a trained scale and next to no work."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).repeat(1, self.times) * self.scale


class Dawdle(nn.Module):
    """Takes its time with every batch, and passes a little of it on."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return x[:, :64] * self.scale


def slow_second(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """A first stage that could send 1 MiB for 16 samples far faster than the second one takes it."""
    return _sequential(Repeat(256), Dawdle(0.004), nn.Linear(64, classes))


def far(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The same, but the second one takes 30 ms: less than a third of a round trip over a long link."""
    return _sequential(Repeat(256), Dawdle(0.03), nn.Linear(64, classes))


def one_sleeps(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The second stage takes more than twice as long as the others."""
    return _sequential(Repeat(1), Dawdle(0.02), Repeat(1), nn.Linear(64, classes))


def two_sleep(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Four units that take their time, the second and the third more than the others."""
    first = nn.Sequential(Repeat(1), Dawdle(0.015))
    middle = [Dawdle(0.02), Dawdle(0.02)]
    return _sequential(first, *middle, Dawdle(0.015), nn.Linear(64, classes))


def huge_messages(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """64 MiB of x for 16 samples."""
    return _sequential(Repeat(16_384), Dawdle(0.0), nn.Linear(64, classes))


def tiny(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """As little work as a batch can be."""
    return _sequential(Repeat(1), Repeat(1), nn.Linear(64, classes))


class Awkward(nn.Module):
    """Buffers that must not be averaged or rounded, and a parameter that nothing uses."""

    mask: Tensor
    fine: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))
        self.linear = nn.Linear(32, 32)
        self.norm = nn.BatchNorm1d(32)
        self.register_buffer("mask", torch.full((2,), torch.finfo(torch.float32).min))
        self.register_buffer("fine", torch.tensor([1 / 3, -0.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.linear(x)).relu()
        return out


def awkward(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """What replicas must leave as it is."""
    return _sequential(_first(32), Awkward(), nn.Linear(32, classes))
