"""Closed forms of modules, and the registry of module types that have one.

Notation for one module with output ``y = f(x; w)`` and a loss ``l``::

    upstream = dl/dy      what the backward formula is given
    dl/dx, dl/dw          what it makes of it
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
Form = TypeVar("Form", bound="ClosedForm[Any]")

Kept = tuple[Any, ...]
"""What a backward formula keeps of the forward pass; its tensors count as memory."""


class Apart(NamedTuple):
    """What of tokens ``[B, T, C]`` or vectors ``[B, C]`` depends on its own place in the input alone."""

    tokens: bool
    """Whether each token does."""
    groups: int
    """Into how many groups the channels fall, each of which does; 1 if all are mixed, 0 if none are."""


MIXED, EACH_TOKEN, EACH_VALUE = Apart(False, 1), Apart(True, 1), Apart(True, 0)


class ClosedForm(Generic[M]):
    """Forward and backward formulas of a module type, in training mode.

    Called with gradients disabled. Neither method may change a tensor that it is given.
    """

    weighted: ClassVar[bool] = False
    """Whether the module counts as the one layer that a stage may have; a norm does not."""
    norm: ClassVar[bool] = False
    """Whether it normalises what the layer before it makes."""
    couples_rows: ClassVar[bool] = False
    """Whether what it makes of a sample depends on the other samples of the batch."""
    over_tokens: ClassVar[bool] = False
    """Whether its parameters have a row for each token that it makes, and not for each channel."""

    def refusal(self, module: M) -> str | None:
        """Return briefly why these formulas do not cover the module; None if they do."""
        return None

    def keeps_apart(self, module: M) -> Apart:
        """Return what of its input it keeps apart; what is not said here counts as mixed."""
        return MIXED

    def forward(self, module: M, x: Tensor, *, moves_buffers: bool) -> tuple[Tensor, Kept]:
        """Compute the module's output.

        Args:
            module: in training mode.
            x: input ``[B, ...]``.
            moves_buffers: whether to update running statistics with this batch; False for a displaced
                input.

        Returns:
            Output ``[B, ...]`` and what :meth:`backward` needs.
        """
        raise NotImplementedError

    def backward(
        self, module: M, kept: Kept, upstream: Tensor, *, wants_input: bool
    ) -> Tensor | None:
        """Add the parameters' gradients to their ``.grad``; return the gradient at the input.

        Linear in ``upstream``: both scale with it.

        Args:
            module: as in :meth:`forward`.
            kept: from :meth:`forward`.
            upstream: gradient at the output, with its shape and dtype.
            wants_input: whether the gradient at the input is needed.

        Returns:
            Gradient at the input, with its shape; may be None if not wanted.
        """
        raise NotImplementedError


_FORMS: dict[type[nn.Module], ClosedForm[Any]] = {}


def closed_form_of(kind: type[nn.Module]) -> Callable[[type[Form]], type[Form]]:
    """Decorate a class as the closed form of modules of exactly this type.

    It does not apply to subclasses, whose forward may differ.

    Raises:
        ValueError: the type has one already.
    """

    def add(form: type[Form]) -> type[Form]:
        if kind in _FORMS:
            raise ValueError(f"{kind.__name__} has a closed form already")
        _FORMS[kind] = form()
        return form

    return add


def form_of(module: nn.Module) -> ClosedForm[Any]:
    """Return the closed form of a module's type.

    Raises:
        KeyError: the type has none.
    """
    return _FORMS[type(module)]


def refusal(module: nn.Module) -> str | None:
    """Return why a module has no closed form, as a noun phrase with its type; None if it has one."""
    name = type(module).__name__
    if type(module) not in _FORMS:
        return name
    if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)):
        return f"{name} with hooks"  # such as old-style weight norm: a formula would pass them over
    reason = form_of(module).refusal(module)
    return None if reason is None else f"{name} {reason}"


def leaves(module: nn.Module) -> list[nn.Module]:
    """Return the modules called in sequence, with containers flattened and repetitions kept."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return [leaf for child in module for leaf in leaves(child)]
    return [module]


def accumulate(parameter: Tensor | None, gradient: Callable[[], Tensor]) -> None:
    """Add to a parameter's ``.grad``, if the parameter exists and is trained.

    Args:
        parameter: a parameter, or what a module holds in place of one.
        gradient: computes the gradient, with the parameter's shape, as a new tensor.
    """
    if parameter is None or not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = gradient()
    else:
        parameter.grad += gradient()
