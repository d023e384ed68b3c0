"""Closed forms of weighted layers: linear maps and convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from pipelocal.closed_form.form import (
    EACH_TOKEN,
    Apart,
    ClosedForm,
    Kept,
    accumulate,
    closed_form_of,
)
from pipelocal.models.layers import PooledLinear


@closed_form_of(nn.Linear)
class LinearForm(ClosedForm[nn.Linear]):
    """``y = x W^T + b`` for ``x [..., I]``, ``W [O, I]``; sums over all dimensions but the last::

    dl/dx = u W        dl/dW = sum u^T x        dl/db = sum u
    """

    weighted = True

    def keeps_apart(self, module: nn.Linear) -> Apart:
        """See :class:`ClosedForm`."""
        return EACH_TOKEN

    def forward(self, module: nn.Linear, x: Tensor, *, moves_buffers: bool) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        return F.linear(x, module.weight, module.bias), (x,)

    def backward(
        self, module: nn.Linear, kept: Kept, upstream: Tensor, *, wants_input: bool
    ) -> Tensor | None:
        """See :class:`ClosedForm`."""
        (x,) = kept
        u = upstream.flatten(0, -2)
        accumulate(module.weight, lambda: u.T @ x.flatten(0, -2))
        accumulate(module.bias, lambda: u.sum(0))
        return upstream @ module.weight if wants_input else None


@closed_form_of(nn.Conv2d)
class Conv2dForm(ClosedForm[nn.Conv2d]):
    """A cross-correlation ``y = W * x + b``, which is linear in x and in W::

        dl/dx = the transposed convolution of u with W
        dl/dW = the correlation of x with u, each group by itself
        dl/db = sum of u over batch and space

    With groups, stride, dilation and padding by zeros.
    """

    weighted = True

    def refusal(self, module: nn.Conv2d) -> str | None:
        """See :class:`ClosedForm`."""
        if module.padding_mode != "zeros":
            return f"with padding mode '{module.padding_mode}'"
        return "with uneven padding" if _padding(module) is None else None

    def forward(self, module: nn.Conv2d, x: Tensor, *, moves_buffers: bool) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`; ``[B, I, H, W]`` to ``[B, O, H', W']``."""
        padding = _padding(module)
        assert padding is not None, "refused before"
        out = F.conv2d(
            x, module.weight, module.bias, module.stride, padding, module.dilation, module.groups
        )
        return out, (x, padding)

    def backward(
        self, module: nn.Conv2d, kept: Kept, upstream: Tensor, *, wants_input: bool
    ) -> Tensor | None:
        """See :class:`ClosedForm`."""
        x, padding = kept
        geometry = (module.stride, padding, module.dilation, module.groups)
        weight = module.weight
        accumulate(
            weight,
            lambda: conv2d_weight(x, tuple(weight.shape), upstream, *geometry),  # type: ignore[no-untyped-call]
        )
        accumulate(module.bias, lambda: upstream.sum((0, 2, 3)))
        if not wants_input:
            return None
        return conv2d_input(x.shape, weight, upstream, *geometry)  # type: ignore[no-any-return, no-untyped-call]


@closed_form_of(PooledLinear)
class PooledLinearForm(ClosedForm[PooledLinear]):
    """``y = m W^T + b`` with ``m`` the mean of ``x [B, C, ...]`` over its n places::

    dl/dm = u W, of which every place of x has an n-th      dl/dW = u^T m      dl/db = sum u
    """

    weighted = True

    def forward(
        self,
        module: PooledLinear,
        x: Tensor,
        *,
        moves_buffers: bool,
    ) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        mean = _pooled(x)
        return F.linear(mean, module.linear.weight, module.linear.bias), (mean, x.shape)

    def backward(
        self, module: PooledLinear, kept: Kept, upstream: Tensor, *, wants_input: bool
    ) -> Tensor | None:
        """See :class:`ClosedForm`."""
        mean, shape = kept
        linear = module.linear
        accumulate(linear.weight, lambda: upstream.T @ mean)
        accumulate(linear.bias, lambda: upstream.sum(0))
        return spread(upstream @ linear.weight, shape) if wants_input else None


def spread(gradient: Tensor, shape: torch.Size) -> Tensor:
    """The gradient at ``[B, C, ...]`` from that at its mean over places ``[B, C]``; contiguous."""
    places = shape[2:].numel()  # 1 where there are none
    return (gradient / places).view(*shape[:2], *[1] * len(shape[2:])).expand(shape).contiguous()


def _pooled(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2) if x.dim() > 2 else x


def _padding(module: nn.Conv2d) -> tuple[int, int] | None:
    """Zeros on either side of height and width; None where the two sides differ."""
    if module.padding == "valid":
        return (0, 0)
    if module.padding == "same":
        height, width = (
            dilation * (size - 1)
            for dilation, size in zip(module.dilation, module.kernel_size, strict=True)
        )
        return None if height % 2 or width % 2 else (height // 2, width // 2)
    assert not isinstance(module.padding, str)
    height, width = module.padding
    return height, width
