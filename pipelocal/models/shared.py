"""Parameters that two units share, which stages cannot: refused, or copied at the start."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from torch import nn

from pipelocal.errors import UserError
from pipelocal.models.copying import carry_over, copy_of

if TYPE_CHECKING:
    from pipelocal.models.traced import Piece


def check_nothing_shared(
    units: Sequence[tuple[str, nn.Module]], state: Collection[str] | None = None
) -> None:
    """Refuse units that share a parameter or buffer.

    Args:
        units: names and modules.
        state: names of all tensors but constants, of which each unit gets its own, if the modules' names are
            those of the whole model.
    """
    owners: dict[int, tuple[str, str]] = {}
    for unit, module in units:
        for name, tensor in (
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ):
            if state is not None and name not in state:
                continue
            owner, first = owners.setdefault(id(tensor), (unit, name))
            if owner == unit:
                continue
            raise UserError(
                f"units '{owner}' and '{unit}' share a parameter or buffer, which stages cannot: put both "
                f"into one unit, or give each its own"
                + (
                    f" (Chain.from_module(untie=True) copies '{first}' to '{name}' at the start)"
                    if state is not None and first != name
                    else ""
                )
            )


def untied(
    model: nn.Module, pieces: Sequence[Piece]
) -> tuple[nn.Module, list[str], dict[str, str]]:
    """Return a copy of a model in which each unit has parameters of its own, and what was copied.

    That is a line for each copied parameter, and by its name (or names) that of the one it was tied to.

    A tensor that two units use under one and the same name stays shared.
    """
    owners: dict[int, tuple[str, str]] = {}
    own = copy_of(model)
    notes, copies = [], {}
    for piece in pieces:
        made: dict[int, nn.Parameter] = {}  # what is tied within the unit stays so
        for name, parameter in piece.module.named_parameters(remove_duplicate=False):
            owner, first = owners.setdefault(id(parameter), (piece.name, name))
            if owner == piece.name or first == name:
                continue
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(
                    parameter.detach().clone(), parameter.requires_grad
                )
                carry_over(parameter, made[id(parameter)], {})
                notes.append(
                    f"'{name}' of unit '{piece.name}' starts as a copy of '{first}' and is trained apart"
                )
            copies[name] = first
            path, _, last = name.rpartition(".")
            setattr(own.get_submodule(path), last, made[id(parameter)])
    return own, notes, copies
