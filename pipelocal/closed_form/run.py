"""Runs a sequence of modules by their closed forms, forward and backward."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from pipelocal.closed_form.form import Kept, form_of, leaves


class BodyRun(Protocol):
    """A forward pass of a stage's body, and what makes its parameters' gradients; see :class:`ClosedRun`."""

    out: Tensor

    def backward(self, upstream: Tensor, *, wants_input: bool) -> Tensor | None:
        """Add the parameters' gradients to their ``.grad``; called once."""

    def kept(self) -> Iterable[Tensor]:
        """Return the tensors kept for that."""


class ClosedRun:
    """The forward pass of a module, and what its backward pass needs.

    Args:
        module: a module with a closed form, or a sequence of such modules; in training mode.
        x: its input ``[B, ...]``.
        moves_buffers: whether to update running statistics with this batch.
    """

    def __init__(self, module: nn.Module, x: Tensor, *, moves_buffers: bool) -> None:
        self._kept: list[tuple[nn.Module, Kept]] = []
        with torch.no_grad():
            for leaf in leaves(module):
                x, kept = form_of(leaf).forward(leaf, x, moves_buffers=moves_buffers)
                self._kept.append((leaf, kept))
        self.out = x
        """Output ``[B, ...]``, without a graph."""

    def backward(self, upstream: Tensor, *, wants_input: bool) -> Tensor | None:
        """Add the parameters' gradients to their ``.grad``; call it only once, since it frees what was kept.

        Args:
            upstream: gradient at the output, of its shape and dtype.
            wants_input: whether the gradient at the input is needed.

        Returns:
            Gradient at the input, or None if it is not wanted.
        """
        gradient: Tensor | None = upstream
        with torch.no_grad():
            while self._kept:
                # Before the first module that trains, nobody needs a gradient but the caller.
                if not (wants_input or any(_trains(leaf) for leaf, _ in self._kept)):
                    break
                leaf, kept = self._kept.pop()
                further = wants_input or any(_trains(before) for before, _ in self._kept)
                assert gradient is not None, "every module but the first is asked for it"
                gradient = form_of(leaf).backward(leaf, kept, gradient, wants_input=further)
        self._kept.clear()
        return gradient if wants_input else None

    def kept(self) -> Iterable[Tensor]:
        """The tensors that :meth:`backward` needs."""
        return (value for _, kept in self._kept for value in kept if isinstance(value, Tensor))


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
