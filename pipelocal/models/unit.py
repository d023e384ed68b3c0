"""One link of a chain, as a recipe."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from pipelocal.models.in_place import give_own_input
from pipelocal.models.state import Versions
from pipelocal.seeding import seeded

Shape = tuple[int, ...]
"""A shape without its batch dimension."""

Layout = tuple[tuple[str, tuple[int, ...], str], ...]
"""Name, shape and dtype of each tensor in a state dict."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One link of the chain: the smallest piece that a stage can hold.

    A unit is only a recipe, so that a rank builds no units but those of its own stages.
    """

    name: str
    """Name of the unit for users, such as ``layer1.0``."""
    build: Callable[[], nn.Module]
    """Builds the module, drawing its initial parameters from torch's generator."""
    prefix: str | None = None
    """Prefix of the unit's own names in the whole model's state dict; None for
    ``"NAME."``. With ``""`` a unit can hold several parts of the model's top level."""
    passes: tuple[str, ...] | None = None
    """Names of the tensors that it passes on, its own first; None to call them after the unit."""
    in_place: tuple[int, ...] = ()
    """Places of the inputs that the unit is known to change; see :meth:`Chain.tried`."""
    layout: Layout | None = None
    """Contents of its state dict, if known; see :meth:`Chain.tried`."""
    begin_with: Callable[[nn.Module], None] | None = None
    """Gives the built module its first weights; None to keep those that it is built with."""

    def make(self) -> nn.Module:
        """Build the module with its first weights, so that it leaves its input unchanged."""
        module = self.build()
        if self.begin_with is not None:
            self.begin_with(module)
        if self.in_place:
            give_own_input(module, self.in_place)
        return module

    def whole_name(self, own_name: str) -> str:
        """Return the name in the whole model's state dict of the unit's parameter ``own_name``."""
        return (f"{self.name}." if self.prefix is None else self.prefix) + own_name

    def whole_versions(self, own: Versions) -> Versions:
        """Return the versions of the unit's modules, by their paths in the whole model.

        The unit itself is left out if it is not a module of the model.
        """
        named = {self.whole_name(path).removesuffix("."): kept for path, kept in own.items()}
        return {path: kept for path, kept in named.items() if path}


def build_unit(unit: Unit, seed: int) -> nn.Module:
    """Build one unit alone, drawn from its own seed."""
    with seeded(seed, "unit", unit.name):
        return unit.make()


def assemble(units: Sequence[Unit], seed: int) -> nn.Sequential:
    """Build units as one module, each drawn from its own seed."""
    return nn.Sequential(OrderedDict((module_name(unit), build_unit(unit, seed)) for unit in units))


def module_name(unit: Unit) -> str:
    """Return a unit's name as a module, without dots; whole_name gives the whole model's own names."""
    return unit.name.replace(".", "/")


def named_sequence(units: Sequence[Unit]) -> nn.Sequential:
    """Build units as one module whose state dict has the whole model's names."""
    built = assemble(units, 0)
    names = {
        f"{child}.{name}": unit.whole_name(name)
        for (child, module), unit in zip(built.named_children(), units, strict=True)
        for name in module.state_dict()
    }
    own = {whole: name for name, whole in names.items()}
    built.register_state_dict_post_hook(partial(_rename, names))  # type: ignore[no-untyped-call]
    built.register_load_state_dict_pre_hook(partial(_rename, own))  # type: ignore[no-untyped-call]
    return built


def _rename(
    names: Mapping[str, str], _module: nn.Module, state: dict[str, Any], prefix: str, *_: Any
) -> None:
    found = {
        prefix + new: state.pop(prefix + old) for old, new in names.items() if prefix + old in state
    }
    state.update(found)
