"""Tries out a unit before training: its output, and whether it leaves its input unchanged.

This usually happens on the meta device, where nothing is computed. A unit that needs values, such as a
BatchNorm with a cumulative average, is run for real on two rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipelocal.errors import UserError
from pipelocal.models.in_place import disable_inplace
from pipelocal.models.payload import Payload, each, pack, tensors_of
from pipelocal.models.unit import Layout, Unit
from pipelocal.seeding import seeded
from pipelocal.system.tensor_kind import TensorKind


class Trial(NamedTuple):
    """What a unit showed when it was tried out."""

    made: tuple[TensorKind, ...]
    """Kinds of the tensors that it returns, its own first."""
    in_place: tuple[int, ...]
    """Places of the inputs that it changes in place."""
    layout: Layout


def try_units(
    units: Sequence[Unit], inputs: Sequence[TensorKind]
) -> tuple[list[Unit], list[tuple[TensorKind, ...]]]:
    """Try out each unit on what the one before it passes on.

    Returns:
        The units, with what the trial showed, and the kinds of what each passes on.

    Raises:
        UserError: a unit does not fit the one before it; or the last returns more than one tensor.
    """
    given = tuple(inputs)
    tried, crossing = [], []
    for unit in units:
        given, in_place, layout = try_unit(unit.name, unit.build, given, unit.passes)
        tried.append(replace(unit, in_place=in_place, layout=layout))
        crossing.append(given)
    if len(given) > 1:
        raise UserError(
            f"the classifier '{units[-1].name}' must return one tensor, the logits, not a tuple of "
            f"{len(given)}"
        )
    return tried, crossing


def try_unit(
    name: str,
    build: Callable[[], nn.Module],
    given: Sequence[TensorKind],
    passes: Sequence[str] | None = None,
) -> Trial:
    """Build a unit for this trial alone, and run it.

    Args:
        name: the unit's name.
        build: builds the unit.
        given: kinds of what it is given.
        passes: names of what it returns, if they are known.

    Raises:
        UserError: the unit does not accept the input, or does not return one tensor or several with the
            batch dimension first, the first of them floating.
    """
    main, *beside = (
        torch.empty((2, *kind.shape), dtype=kind.dtype, device="meta") for kind in given
    )
    sample = pack(main, tuple(beside))
    other: torch.dtype | None = None
    try:
        shown = None
        try:
            with torch.device("meta"):
                module = build()
                check_not_lazy(f"unit '{name}'", module)
                layout, absent = _layout(module), _absent(module)
                other = _other_dtype(module, main)
                if other is None:  # meta tensors of several dtypes mix without a word
                    shown = _run(module.to("meta"), sample)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            if not isinstance(error, NotImplementedError) and "meta" not in str(error).lower():
                raise
        if shown is None:
            with seeded(0, "trial"):
                module = build()
                layout, absent = _layout(module), _absent(module)
                device = next(module.parameters(), torch.empty(0)).device
                shown = _run(module, each(lambda one: sample_value(one, device), sample))
    except UserError:
        raise
    except Exception as error:
        if other is not None and "dtype" in str(error):
            became = ", as samples in float64 become float32" * (other == torch.float64)
            raise UserError(
                f"unit '{name}' works in {other}, and is given {main.dtype}{became} ({error}): build the "
                f"model in {main.dtype}, or convert what the unit is given"
            ) from error
        said = ", ".join(f"{kind.name} {kind.shape}" for kind in given)
        what = f"an input of shape {given[0].shape}" if len(given) == 1 else f"a tuple ({said})"
        raise UserError(f"unit '{name}' does not take {what}: {error}") from error
    if late := absent - _absent(module):
        raise UserError(
            f"unit '{name}' registers its buffer '{min(late)}' as None, and makes it when it runs, so that "
            f"copies and snapshots would lack it: register it with its shape, such as torch.zeros(...)"
        )
    out, in_place, relayed = shown
    out = tuple(out) if isinstance(out, list) else out
    several = isinstance(out, tuple) and len(out) > 1
    for place, one in enumerate(out if isinstance(out, tuple) and several else (out,)):
        if not isinstance(one, Tensor) or one.shape[:1] != (2,):
            which = f"in place {place} of what it returns " if several else ""
            raise UserError(
                f"unit '{name}' must return one tensor with the batch dimension first, or a tuple of "
                f"such, not {which}{_said(one)}: give units that pass on tensors [rows, ...]"
            )
    tensors = tensors_of(cast(Payload, out))
    if not tensors[0].is_floating_point():
        raise UserError(
            f"unit '{name}' makes {tensors[0].dtype}: what a unit passes on first must be floating, so put "
            f"it into one unit with what takes it"
        )
    names = passes or [
        name
        if not place
        else given[relayed[place]].name
        if place in relayed
        else f"{name}[{place}]"
        for place in range(len(tensors))
    ]
    made = tuple(
        TensorKind(name=called, shape=tuple(tensor.shape[1:]), dtype=tensor.dtype)
        for called, tensor in zip(names, tensors, strict=True)
    )
    return Trial(made, in_place, layout)


def _absent(module: nn.Module) -> set[str]:
    """Return the names of buffers of the state dict that are registered as None."""
    return {
        f"{path}.{name}".removeprefix(".")
        for path, part in module.named_modules()
        for name, buffer in part._buffers.items()
        if buffer is None and name not in part._non_persistent_buffers_set
    }


def _said(thing: object) -> str:
    if isinstance(thing, Tensor):
        return f"a tensor of shape {list(thing.shape)} for 2 rows"
    return type(thing).__name__


def _other_dtype(module: nn.Module, main: Tensor) -> torch.dtype | None:
    """Return a floating-point dtype of a module's parameters that is not its input's; None if all are."""
    if not main.is_floating_point():
        return None
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next((dtype for dtype in dtypes if dtype != main.dtype), None)


def check_not_lazy(what: str, module: nn.Module) -> None:
    """Raise a :class:`UserError` if a module's parameters have no shape yet; ``what`` names it."""
    for path, part in module.named_modules():
        own = (*part.parameters(recurse=False), *part.buffers(recurse=False))
        if any(is_lazy(tensor) for tensor in own):
            where = f" ('{path}')" if path else ""
            raise UserError(
                f"{what} has a lazy module{where}, whose parameters have no shape yet: call the model "
                f"once on a sample before you return it, or give {type(part).__name__} its sizes"
            )


def check_has_values(what: str, module: nn.Module) -> None:
    """Raise a :class:`UserError` if a module's tensors are on the meta device; ``what`` names it."""
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise UserError(
            f"{what} has tensors without values, on the meta device: call .to_empty(device='cpu') and "
            f"draw or load its weights first"
        )


def shadow(module: nn.Module) -> nn.Module:
    """Copy a module for passes without side effects: own buffers and attributes, same parameters."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def changes_input(module: nn.Module, x: Payload) -> tuple[int, ...]:
    """Return the places of the inputs that a module changes, in training or in evaluation.

    This does not count ``inplace=True``, which is turned off.

    Args:
        module: may be changed by the trial.
        x: an input for this trial alone, of ``[2, ...]``, which may be changed too.
    """
    disable_inplace(module)
    for train in (True, False):
        with suppress(Exception), torch.no_grad(), seeded(0, "trial"):
            module.train(train)(x)
    return tuple(place for place, one in enumerate(tensors_of(x)) if one._version > 0)


def _layout(module: nn.Module) -> Layout:
    return tuple(
        (name, tuple(tensor.shape), str(tensor.dtype))
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor)  # extra state may be anything
    )


def _run(module: nn.Module, x: Payload) -> tuple[object, tuple[int, ...], dict[int, int]]:
    """Return the output, the places of the inputs that were changed, and which outputs are which inputs."""
    disable_inplace(module)
    again = each(Tensor.clone, x)
    out: object = module(x)
    given = tensors_of(x)
    made = out if isinstance(out, (tuple, list)) else (out,)
    changed = {place for place, one in enumerate(given) if one._version > 0}
    relayed = {
        to: at for to, one in enumerate(made) for at, other in enumerate(given) if one is other
    }
    return out, tuple(sorted(changed | set(changes_input(module, again)))), relayed


def sample_value(sample: Tensor, device: torch.device) -> Tensor:
    if sample.is_floating_point():
        return torch.randn(sample.shape, dtype=sample.dtype, device=device)
    return torch.zeros(sample.shape, dtype=sample.dtype, device=device)
