"""Closed forms without parameters: activations, and modules that rearrange values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipelocal.closed_form.form import EACH_VALUE, Apart, ClosedForm, Kept, closed_form_of
from pipelocal.closed_form.layers import spread


@closed_form_of(nn.ReLU)
class ReLUForm(ClosedForm[nn.ReLU]):
    """``y = max(x, 0)``; ``dl/dx = u`` where y > 0, else 0. Never in place."""

    def keeps_apart(self, module: nn.ReLU) -> Apart:
        """See :class:`ClosedForm`."""
        return EACH_VALUE

    def forward(self, module: nn.ReLU, x: Tensor, *, moves_buffers: bool) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        y = torch.relu(x)
        return y, (y,)

    def backward(
        self,
        module: nn.ReLU,
        kept: Kept,
        upstream: Tensor,
        *,
        wants_input: bool,
    ) -> Tensor:
        """See :class:`ClosedForm`."""
        (y,) = kept
        return torch.where(y > 0, upstream, 0.0)


@closed_form_of(nn.Tanh)
class TanhForm(ClosedForm[nn.Tanh]):
    """``y = tanh(x)``; ``dl/dx = u (1 - y^2)``."""

    def keeps_apart(self, module: nn.Tanh) -> Apart:
        """See :class:`ClosedForm`."""
        return EACH_VALUE

    def forward(self, module: nn.Tanh, x: Tensor, *, moves_buffers: bool) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        y = torch.tanh(x)
        return y, (y,)

    def backward(
        self,
        module: nn.Tanh,
        kept: Kept,
        upstream: Tensor,
        *,
        wants_input: bool,
    ) -> Tensor:
        """See :class:`ClosedForm`."""
        (y,) = kept
        gradient: Tensor = upstream * (1 - y.square())
        return gradient


@closed_form_of(nn.Identity)
class IdentityForm(ClosedForm[nn.Identity]):
    """``y = x``; ``dl/dx = u``."""

    def keeps_apart(self, module: nn.Identity) -> Apart:
        """See :class:`ClosedForm`."""
        return EACH_VALUE

    def forward(
        self,
        module: nn.Identity,
        x: Tensor,
        *,
        moves_buffers: bool,
    ) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        return x, ()

    def backward(
        self,
        module: nn.Identity,
        kept: Kept,
        upstream: Tensor,
        *,
        wants_input: bool,
    ) -> Tensor:
        """See :class:`ClosedForm`."""
        return upstream


@closed_form_of(nn.Flatten)
class FlattenForm(ClosedForm[nn.Flatten]):
    """The same values in another shape, both ways."""

    def forward(self, module: nn.Flatten, x: Tensor, *, moves_buffers: bool) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        flat: Tensor = x.flatten(module.start_dim, module.end_dim)
        return flat, (x.shape,)

    def backward(
        self,
        module: nn.Flatten,
        kept: Kept,
        upstream: Tensor,
        *,
        wants_input: bool,
    ) -> Tensor:
        """See :class:`ClosedForm`."""
        (shape,) = kept
        return upstream.reshape(shape)


@closed_form_of(nn.AdaptiveAvgPool2d)
class GlobalAveragePoolForm(ClosedForm[nn.AdaptiveAvgPool2d]):
    """The mean of ``x [B, C, H, W]`` over space, as ``[B, C, 1, 1]``; each place has its share of u."""

    def refusal(self, module: nn.AdaptiveAvgPool2d) -> str | None:
        """See :class:`ClosedForm`."""
        size = module.output_size
        return None if size in (1, (1, 1)) else f"to the size {size}"

    def forward(
        self,
        module: nn.AdaptiveAvgPool2d,
        x: Tensor,
        *,
        moves_buffers: bool,
    ) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        return x.mean((2, 3), keepdim=True), (x.shape,)

    def backward(
        self,
        module: nn.AdaptiveAvgPool2d,
        kept: Kept,
        upstream: Tensor,
        *,
        wants_input: bool,
    ) -> Tensor:
        """See :class:`ClosedForm`."""
        (shape,) = kept
        return spread(upstream.flatten(1), shape)
