"""Tries out a unit before training: its output, and whether it leaves its input unchanged.

This usually happens on the meta device, where nothing is computed. A unit that needs values, such as a
BatchNorm with a cumulative average, is run for real on two rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipelocal.errors import UserError
from pipelocal.models.in_place import disable_inplace
from pipelocal.seeding import seeded

Layout = tuple[tuple[str, tuple[int, ...], str], ...]
"""Name, shape and dtype of each tensor in a state dict."""


def try_unit(
    name: str, build: Callable[[], nn.Module], sample: Tensor
) -> tuple[Tensor, bool, Layout]:
    """Build a unit for this trial alone, and run it.

    Args:
        name: the unit's name.
        build: builds the unit.
        sample: input ``[2, ...]`` on the meta device.

    Returns:
        Its output, on the meta device; whether it changes its input in place; and the layout of its
        state dict.

    Raises:
        UserError: the unit does not accept the input, does not return a tensor with the batch dimension
            first, or works in a dtype other than float32.
    """
    try:
        try:
            with torch.device("meta"):
                module = build()
                check_not_lazy(f"unit '{name}'", module)
                layout = _layout(module)
                out, in_place = _run(module.to("meta"), torch.empty_like(sample))
        except (RuntimeError, NotImplementedError, ValueError) as error:
            if not isinstance(error, NotImplementedError) and "meta" not in str(error).lower():
                raise
            with seeded(0, "trial"):
                module = build()
                layout = _layout(module)
                device = next(module.parameters(), torch.empty(0)).device
                out, in_place = _run(module, _values(sample, device))
    except UserError:
        raise
    except Exception as error:
        before = tuple(sample.shape[1:])
        raise UserError(
            f"unit '{name}' does not take an input of shape {before}: {error}"
        ) from error
    if not isinstance(out, Tensor) or out.shape[:1] != (2,):
        raise UserError(
            f"unit '{name}' must return one tensor with the batch dimension first, "
            f"not {type(out).__name__}: give units that pass on a single tensor"
        )
    if not out.is_floating_point():
        raise UserError(
            f"unit '{name}' makes {out.dtype}: edges carry float32, so put it into one "
            f"unit with what takes it"
        )
    for tensor in (out, *module.parameters()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UserError(
                f"unit '{name}' works in {tensor.dtype}: edges carry float32, so build "
                f"the model in float32"
            )
    return torch.empty_like(out, device="meta"), in_place, layout


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


def shadow(module: nn.Module) -> nn.Module:
    """Copy a module for passes without side effects: own buffers and attributes, same parameters."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def changes_input(module: nn.Module, x: Tensor) -> bool:
    """Return whether a module changes its input, in training or in evaluation.

    This does not count ``inplace=True``, which is turned off.

    Args:
        module: may be changed by the trial.
        x: an input for this trial alone, ``[2, ...]``, which may be changed too.
    """
    disable_inplace(module)
    for train in (True, False):
        with suppress(Exception), torch.no_grad(), seeded(0, "trial"):
            module.train(train)(x)
    return x._version > 0


def _layout(module: nn.Module) -> Layout:
    return tuple(
        (name, tuple(tensor.shape), str(tensor.dtype))
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor)  # extra state may be anything
    )


def _run(module: nn.Module, x: Tensor) -> tuple[object, bool]:
    disable_inplace(module)
    again = x.clone()
    out: object = module(x)
    return out, x._version > 0 or changes_input(module, again)


def _values(sample: Tensor, device: torch.device) -> Tensor:
    if sample.is_floating_point():
        return torch.randn(sample.shape, device=device)
    return torch.zeros(sample.shape, dtype=sample.dtype, device=device)
