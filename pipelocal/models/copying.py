"""Copies users' modules, as stages train copies; refuses what a copy would lose, or the cut of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any, TypeVar

from torch import Tensor, nn

from pipelocal.errors import UserError

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps them."""


M = TypeVar("M", bound=nn.Module)


def copy_of(module: M, *, shared: object = None) -> M:
    """Return a copy with tensors of its own, and with what is written on parameters.

    ``deepcopy`` leaves that out; it may say which of them weight decay spares.

    Args:
        module: what to copy.
        shared: what is not copied.
    """
    memo: dict[int, Any] = {id(shared): shared}
    made = copy.deepcopy(module, memo)
    copies = dict(made.named_parameters(remove_duplicate=False))
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in copies:  # a module may copy itself in its own way
            carry_over(parameter, copies[name], memo)
    return made


def carry_over(parameter: nn.Parameter, copied: nn.Parameter, memo: dict[int, Any]) -> None:
    """Write copies of what is written on a parameter on its copy, unless that has it.

    Args:
        parameter: the original.
        copied: its copy.
        memo: of ``deepcopy``, with what was copied before.
    """
    for name, value in vars(parameter).items():
        try:
            own = copy.deepcopy(value, memo)
        except (TypeError, RuntimeError):  # what has no copy, such as a lock, is shared
            own = value
        vars(copied).setdefault(name, own)


def check_copyable(what: str, module: nn.Module) -> None:
    """Refuse a module whose copy would not train as it does.

    Args:
        what: names it, such as ``unit 'block1'``.
        module: the module, or the whole model.

    Raises:
        UserError: says what would be lost, and how to write it instead.
    """
    own = {id(thing) for thing in (*module.modules(), *module.parameters(), *module.buffers())}
    for path, part in module.named_modules():
        where = f"{what}: '{path}'" if path else what
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise UserError(
                    f"{where} keeps a tensor that was computed from its parameters ('{name}'), as the old "
                    f"weight_norm and spectral_norm do: use those of torch.nn.utils.parametrizations"
                )
        for function in _functions(part):
            if own & {id(held) for held in _held(function)}:
                raise UserError(
                    f"{where} keeps the function '{function.__qualname__}', which reaches the module from "
                    f"outside, so that a copy would train the original's parameters: make it a method"
                )
    memory: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise UserError(
                f"{what}: the parameter '{name}' has a hook, which a copy would lose: change its gradient in "
                f"the optimizer, or by a hook on a module"
            )
        first, other = memory.setdefault(parameter.data_ptr(), (name, parameter))
        if other is not parameter and parameter.numel() and other.numel():
            raise UserError(
                f"{what}: the parameters '{first}' and '{name}' share memory, which copies would not: use "
                f"one nn.Parameter in both places"
            )


def check_containers(model: nn.Module, units: Sequence[str]) -> None:
    """Refuse hooks on the gradients of what contains units, since tracing sees no backward pass.

    Args:
        model: the whole model.
        units: names of the submodules that become units.

    Raises:
        UserError: says where the hooks are.
    """
    for path, part in model.named_modules():
        contains = not path or any(unit.startswith(f"{path}.") for unit in units)
        if contains and any(getattr(part, hooks) for hooks in HOOKS if "backward" in hooks):
            raise UserError(
                f"{type(model).__name__}: backward hooks on '{path or 'the model'}' would be lost where it "
                f"is cut: register them on its units"
            )


def _functions(part: nn.Module) -> Iterator[FunctionType]:
    """Yield the plain functions that a module keeps, as attributes or hooks."""
    kept = list(vars(part).values())
    for name in HOOKS:
        kept += getattr(part, name).values()
    return (value for value in kept if isinstance(value, FunctionType))


def _held(function: FunctionType) -> Iterator[object]:
    """Yield what a function keeps: its closure's values, and its defaults."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is bound later
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
