"""Closed forms of layers over tokens and groups of channels, and of the heads over tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pipelocal.closed_form.form import (
    Apart,
    ClosedForm,
    Kept,
    accumulate,
    closed_form_of,
    form_of,
)
from pipelocal.closed_form.norms import normalised, through_norm
from pipelocal.heads.linear import TokenMeanLinear
from pipelocal.models.mixing import (
    GroupedLayerNorm,
    GroupedLinear,
    Patches,
    TokenMean,
    TokenMixing,
    in_groups,
)


@closed_form_of(TokenMixing)
class TokenMixingForm(ClosedForm[TokenMixing]):
    """``y = W x + b`` for ``x [B, T, C]``, ``W [T', T]``; sums over batch and channels::

    dl/dx = W^T u        dl/dW = sum u x^T        dl/db = sum u
    """

    weighted = True
    over_tokens = True

    def keeps_apart(self, module: TokenMixing) -> Apart:
        """See :class:`ClosedForm`."""
        return Apart(tokens=False, groups=0)

    def forward(
        self, module: TokenMixing, x: Tensor, *, moves_buffers: bool
    ) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        return module.weight @ x + module.bias[:, None], (x,)

    def backward(
        self, module: TokenMixing, kept: Kept, upstream: Tensor, *, wants_input: bool
    ) -> Tensor | None:
        """See :class:`ClosedForm`."""
        (x,) = kept
        accumulate(module.weight, lambda: _by_token(upstream) @ _by_token(x).T)
        accumulate(module.bias, lambda: upstream.sum((0, 2)))
        return module.weight.T @ upstream if wants_input else None


@closed_form_of(GroupedLinear)
class GroupedLinearForm(ClosedForm[GroupedLinear]):
    """A linear map of each group by itself; for each its ``y = x W^T + b``, as for ``nn.Linear``."""

    weighted = True

    def keeps_apart(self, module: GroupedLinear) -> Apart:
        """See :class:`ClosedForm`."""
        return Apart(tokens=True, groups=module.groups)

    def forward(
        self, module: GroupedLinear, x: Tensor, *, moves_buffers: bool
    ) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        return module(x), (x,)

    def backward(
        self, module: GroupedLinear, kept: Kept, upstream: Tensor, *, wants_input: bool
    ) -> Tensor | None:
        """See :class:`ClosedForm`."""
        (x,) = kept
        groups = module.groups
        u = _by_group(upstream, groups)
        accumulate(module.weight, lambda: (u.mT @ _by_group(x, groups)).flatten(0, 1))
        accumulate(module.bias, lambda: upstream.flatten(0, -2).sum(0))
        if not wants_input:
            return None
        eta = u @ module.weight.view(groups, -1, module.weight.shape[1])
        return eta.transpose(0, 1).reshape(x.shape)


@closed_form_of(GroupedLayerNorm)
class GroupedLayerNormForm(ClosedForm[GroupedLayerNorm]):
    """Layer normalisation of each group; see :class:`~pipelocal.closed_form.norms.LayerNormForm`."""

    norm = True

    def keeps_apart(self, module: GroupedLayerNorm) -> Apart:
        """See :class:`ClosedForm`."""
        return Apart(tokens=True, groups=module.groups)

    def forward(
        self, module: GroupedLayerNorm, x: Tensor, *, moves_buffers: bool
    ) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        z, inverse = normalised(in_groups(x, module.groups), module.eps)
        return z.flatten(-2), (z, inverse)

    def backward(
        self, module: GroupedLayerNorm, kept: Kept, upstream: Tensor, *, wants_input: bool
    ) -> Tensor | None:
        """See :class:`ClosedForm`."""
        z, inverse = kept
        return through_norm(upstream.view(z.shape), z, inverse).flatten(-2)


@closed_form_of(Patches)
class PatchesForm(ClosedForm[Patches]):
    """The same values in another order, both ways."""

    def forward(self, module: Patches, x: Tensor, *, moves_buffers: bool) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        return module(x), (x.shape,)

    def backward(
        self, module: Patches, kept: Kept, upstream: Tensor, *, wants_input: bool
    ) -> Tensor | None:
        """See :class:`ClosedForm`."""
        ((rows, channels, height, width),) = kept
        side = module.side
        patches = upstream.view(rows, side, side, channels, height // side, width // side)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(rows, channels, height, width)


@closed_form_of(TokenMean)
class TokenMeanForm(ClosedForm[TokenMean]):
    """The mean of ``x [B, T, C]`` over the tokens, each of which has its share of u."""

    def forward(self, module: TokenMean, x: Tensor, *, moves_buffers: bool) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        return x.mean(1), (x.shape,)

    def backward(
        self, module: TokenMean, kept: Kept, upstream: Tensor, *, wants_input: bool
    ) -> Tensor:
        """See :class:`ClosedForm`."""
        (shape,) = kept
        return _spread(upstream, shape[1])


@closed_form_of(TokenMeanLinear)
class TokenMeanLinearForm(ClosedForm[TokenMeanLinear]):
    """The mean over the tokens, LayerNorm and a linear map; the forms of these in a row."""

    weighted = True

    def forward(
        self, module: TokenMeanLinear, x: Tensor, *, moves_buffers: bool
    ) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        normed, kept = form_of(module.norm).forward(module.norm, x.mean(1), moves_buffers=False)
        linear = module.linear
        return F.linear(normed, linear.weight, linear.bias), (*kept, normed, x.shape[1])

    def backward(
        self, module: TokenMeanLinear, kept: Kept, upstream: Tensor, *, wants_input: bool
    ) -> Tensor | None:
        """See :class:`ClosedForm`."""
        *of_norm, normed, tokens = kept
        linear = form_of(module.linear)
        at_normed = linear.backward(module.linear, (normed,), upstream, wants_input=True)
        assert at_normed is not None
        at_mean = form_of(module.norm).backward(
            module.norm, tuple(of_norm), at_normed, wants_input=wants_input
        )
        return None if at_mean is None else _spread(at_mean, tokens)


def _spread(upstream: Tensor, tokens: int) -> Tensor:
    return (upstream / tokens)[:, None].expand(-1, tokens, -1).contiguous()


def _by_token(x: Tensor) -> Tensor:
    """``[B, T, C]`` as ``[T, B * C]``."""
    return x.transpose(0, 1).flatten(1)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """``[B, ..., C]`` as ``[groups, places, C / groups]``."""
    return in_groups(x.flatten(0, -2), groups).transpose(0, 1)
