"""Units that a program must not run once more than their author thought of."""

from __future__ import annotations

import random
from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _row(*middle: nn.Module, classifier: nn.Module | None = None) -> nn.Sequential:
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh())
    last = nn.Linear(16, 10) if classifier is None else classifier
    parts = OrderedDict((f"u{i}", unit) for i, unit in enumerate((first, *middle)))
    return nn.Sequential(OrderedDict(**parts, fc=last))


class Doubles(nn.Module):
    """Begins by doubling its input, in place or not."""

    def __init__(self, *, in_place: bool, outputs: int = 16) -> None:
        super().__init__()
        self.linear, self.in_place = nn.Linear(16, outputs), in_place

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mul_(2) if self.in_place else x * 2)  # type: ignore[no-any-return]


class LooksAtValues(Doubles):
    """The same, where the meta device cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.detach().abs().max()) < 1e9 else x.clamp(-1, 1))


def _doubling(unit: type[Doubles], *, in_place: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return _row(
        unit(in_place=in_place),
        nn.Identity(),  # what is changed behind it would be its input, too
        unit(in_place=in_place),
        classifier=unit(in_place=in_place, outputs=10),
    )


def doubles(_shape: object, _classes: int) -> nn.Sequential:
    return _doubling(Doubles, in_place=False)


def doubles_in_place(_shape: object, _classes: int) -> nn.Sequential:
    return _doubling(Doubles, in_place=True)


def looks_at_values_in_place(_shape: object, _classes: int) -> nn.Sequential:
    return _doubling(LooksAtValues, in_place=True)


class Draws(nn.Module):
    """Scales its output by what a generator other than torch's gives."""

    def __init__(self, generator: str) -> None:
        super().__init__()
        self.linear, self.generator = nn.Linear(16, 16), generator

    def forward(self, x: Tensor) -> Tensor:
        factor = random.random() if self.generator == "python" else float(np.random.rand())
        out: Tensor = self.linear(x) * (factor if self.training else 0.5)
        return out.tanh()


def draws_python(_shape: object, _classes: int) -> nn.Sequential:
    return _row(*(Draws("python") for _ in range(3)))


def draws_numpy(_shape: object, _classes: int) -> nn.Sequential:
    return _row(*(Draws("numpy") for _ in range(3)))


def begins_by_numpy(_shape: object, _classes: int) -> nn.Sequential:
    """Its first weights come of NumPy's generator."""
    linear = nn.Linear(16, 16)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(np.random.randn(16, 16)))
    return _row(linear, nn.ReLU())


class Warms(nn.Module):
    """Counts its batches in a buffer, and goes by it: a replay must begin with the same count."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
        out: Tensor = self.linear(x) / (1 + self.count)
        return out.tanh()


def warms(_shape: object, _classes: int) -> nn.Sequential:
    return _row(Warms(), Warms(), Warms())


def spectral(_shape: object, _classes: int) -> nn.Sequential:
    """Spectral norm moves its buffers with each forward pass in training, and computes by them."""
    norm = nn.utils.parametrizations.spectral_norm
    return _row(*(nn.Sequential(norm(nn.Linear(16, 16)), nn.ReLU()) for _ in range(3)))


class Counts(nn.Module):
    """Counts its batches in an attribute that no state dict holds."""

    def __init__(self, *, sees: bool) -> None:
        super().__init__()
        self.linear, self.calls, self.sees = nn.Linear(16, 16), 0, sees

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.linear(x)
        return out / self.calls if self.sees else out


def counts(_shape: object, _classes: int) -> nn.Sequential:
    return _row(nn.Linear(16, 16), Counts(sees=True))


class Remembers(nn.Module):
    """Adds what it made of the batch before."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.last = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.last.to(x.device)
        self.last = out.detach().mean()
        return out


def remembers(_shape: object, _classes: int) -> nn.Sequential:
    return _row(nn.Linear(16, 16), Remembers())


class Caches(nn.Module):
    """Makes something once and keeps it, as many attention layers do with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.mask: Tensor | None = None
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None or self.rows != len(x):
            self.rows, self.mask = len(x), torch.ones(16, device=x.device)
        return F.relu(self.linear(x * self.mask))


def caches(_shape: object, _classes: int) -> nn.Sequential:
    return _row(Caches(), Caches())


def cumulative(_shape: object, _classes: int) -> nn.Sequential:
    """BatchNorm whose running statistics are the mean over all batches."""
    norms = [nn.BatchNorm1d(16, momentum=None) for _ in range(2)]
    return _row(*(nn.Sequential(nn.Linear(16, 16), norm) for norm in norms))


def lazy(_shape: object, classes: int) -> nn.Sequential:
    return _row(nn.LazyLinear(16), nn.ReLU(), classifier=nn.LazyLinear(classes))


def lazy_made_ready(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    model = lazy(shape, classes)
    model(torch.zeros(2, *shape))
    return model
