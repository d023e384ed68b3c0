"""Modules whose state dicts are more than tensors under the names of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.models import Chain, Shape, Unit

UNITS = ["a", "b", "fc"]


class Versioned(nn.Module):
    """Wants to know which version of it has written a state dict."""

    _version = 2

    def _load_from_state_dict(
        self, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *rest: Any
    ) -> None:
        if metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Part(Versioned):
    """A versioned unit."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x)))  # type: ignore[no-any-return]


class Extra(nn.Module):
    """Keeps a number, or what else, as extra state."""

    def __init__(self, kept: Any = 3) -> None:
        super().__init__()
        self.linear, self.kept = nn.Linear(32, 32), kept

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)  # type: ignore[no-any-return]

    def get_extra_state(self) -> Any:
        return self.kept

    def set_extra_state(self, state: Any) -> None:
        self.kept = state


class Renames(nn.Module):
    """Hooks of its own name its weight otherwise in a file."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.register_state_dict_post_hook(self._written)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(self._read)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)  # type: ignore[no-any-return]

    @staticmethod
    def _written(_module: nn.Module, state: dict[str, Any], prefix: str, _local: Any) -> None:
        state[f"{prefix}matrix"] = state.pop(f"{prefix}linear.weight")

    @staticmethod
    def _read(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        state[f"{prefix}linear.weight"] = state.pop(f"{prefix}matrix")


class Complex(nn.Module):
    """Computes in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(17, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=32)
        return out


def _part(kind: str) -> nn.Module:
    parametrizations: Any = nn.utils.parametrizations
    kinds: dict[str, Callable[[], nn.Module]] = {
        "versioned": Part,
        "tied": Tied,
        "extra_number": Extra,
        "extra_tensor": lambda: Extra(torch.arange(3.0)),
        "extra_object": lambda: Extra(frozenset([1])),
        "renames": Renames,
        "complex": Complex,
        "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(32, 32)),
        "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(32, 32)),
        "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(32, 32)),
    }
    return kinds[kind]()


class Net(Versioned):
    """The author's own class around one such part."""

    def __init__(self, kind: str, classes: int = 10) -> None:
        super().__init__()
        self.a = nn.Linear(64, 32)
        self.b = _part(kind)
        self.fc = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x.flatten(1))))))  # type: ignore[no-any-return]


class ByValues(nn.Linear):
    """Looks at numbers as it is made, which on the meta device cannot be."""

    def __init__(self) -> None:
        super().__init__(64, 32)
        self.rates = torch.linspace(0, 1, 3).tolist()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1)) * float(self.rates[1])


def by_values(shape: Shape, classes: int) -> Chain:
    """A chain of recipes, the first of which needs a real device."""
    units = [Unit(name="a", build=ByValues), Unit(name="b", build=nn.ReLU)]
    classifier = Unit(name="fc", build=lambda: nn.Linear(32, classes))
    return Chain(units, classifier=classifier, input_shape=shape, classes=classes)


def __getattr__(name: str) -> Any:
    """Functions for ``--model``: ``KIND`` by the names of its units, ``KIND_row`` as a row."""
    if name.startswith("_"):
        raise AttributeError(name)
    kind, _, form = name.partition("__")

    def chain(shape: Shape, classes: int) -> Chain | nn.Sequential:
        if form == "row":
            first = nn.Sequential(nn.Flatten(), nn.Linear(64, 32))
            return nn.Sequential(first, _part(kind), nn.Linear(32, classes))
        net = Net(kind, classes)
        return Chain.from_module(net, units=UNITS, input_shape=shape, classes=classes)

    return chain
