"""Closed forms of batch and layer normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipelocal.closed_form.form import (
    EACH_TOKEN,
    Apart,
    ClosedForm,
    Kept,
    accumulate,
    closed_form_of,
)


@closed_form_of(nn.BatchNorm2d)
@closed_form_of(nn.BatchNorm1d)
class BatchNormForm(ClosedForm[nn.BatchNorm1d | nn.BatchNorm2d]):
    """Batch normalisation in training mode, affine or not.

    With means over all n values of a channel, that is over batch and places of ``x [B, C, ...]``::

        z = (x - mean(x)) / s,   s = sqrt(var(x) + eps)       y = g z + b

    Mean and deviation depend on every x, which subtracts two terms from the gradient::

        dl/dg = sum u z     dl/db = sum u
        dl/dx = g / s * ( u - mean(u) - z mean(u z) )

    The running statistics follow PyTorch's: an exponential mean, with the unbiased variance.
    """

    norm = True
    couples_rows = True

    def forward(
        self, module: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, *, moves_buffers: bool
    ) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`.

        Raises:
            ValueError: there is one value per channel, which has no variance.
        """
        values = x.numel() // x.shape[1]
        if values == 1:  # same message as PyTorch
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.shape}"
            )
        variance, mean = torch.var_mean(x, _all_but_channels(x), correction=0)
        if moves_buffers:
            _move_statistics(module, mean, variance * (values / (values - 1)))
        inverse = torch.rsqrt(variance + module.eps)
        z = x - _per_channel(mean, x)
        z *= _per_channel(inverse, x)
        if not module.affine:
            return z, (z, inverse)
        weight, bias = _per_channel(module.weight, x), _per_channel(module.bias, x)
        return torch.addcmul(bias, z, weight), (z, inverse)

    def backward(
        self,
        module: nn.BatchNorm1d | nn.BatchNorm2d,
        kept: Kept,
        upstream: Tensor,
        *,
        wants_input: bool,
    ) -> Tensor | None:
        """See :class:`ClosedForm`."""
        z, inverse = kept
        dims = _all_but_channels(z)
        sum_uz, sum_u = (upstream * z).sum(dims), upstream.sum(dims)
        if module.affine:
            # Clones: both sums are needed below, and belong to the parameters from here on.
            accumulate(module.weight, sum_uz.clone)
            accumulate(module.bias, sum_u.clone)
        if not wants_input:
            return None
        values = z.numel() // z.shape[1]
        scale = inverse * module.weight if module.affine else inverse
        eta = upstream - _per_channel(sum_u / values, z)
        eta.addcmul_(z, _per_channel(sum_uz / values, z), value=-1)
        eta *= _per_channel(scale, z)
        return eta


@closed_form_of(nn.LayerNorm)
class LayerNormForm(ClosedForm[nn.LayerNorm]):
    """Layer normalisation of ``x [B, ..., C]`` over its last dimension, affine or not.

    As batch normalisation, with means over the values of each place::

        z = (x - mean(x)) / s,   s = sqrt(var(x) + eps)       y = g z + b
        dl/dg = sum u z     dl/db = sum u
        dl/dx = ( g u - mean(g u) - z mean(g u z) ) / s
    """

    norm = True

    def refusal(self, module: nn.LayerNorm) -> str | None:
        """See :class:`ClosedForm`."""
        return None if len(module.normalized_shape) == 1 else "over several dimensions"

    def keeps_apart(self, module: nn.LayerNorm) -> Apart:
        """See :class:`ClosedForm`."""
        return EACH_TOKEN

    def forward(
        self, module: nn.LayerNorm, x: Tensor, *, moves_buffers: bool
    ) -> tuple[Tensor, Kept]:
        """See :class:`ClosedForm`."""
        z, inverse = normalised(x, module.eps)
        y = z if module.weight is None else z * module.weight
        return y if module.bias is None else y + module.bias, (z, inverse)

    def backward(
        self, module: nn.LayerNorm, kept: Kept, upstream: Tensor, *, wants_input: bool
    ) -> Tensor | None:
        """See :class:`ClosedForm`."""
        z, inverse = kept
        places = list(range(z.dim() - 1))
        accumulate(module.weight, lambda: (upstream * z).sum(places))
        accumulate(module.bias, lambda: upstream.sum(places))
        if not wants_input:
            return None
        u = upstream if module.weight is None else upstream * module.weight
        return through_norm(u, z, inverse)


def normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalise over the last dimension; return that, and one over the deviation."""
    z, _, inverse = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
    return z, inverse


def through_norm(u: Tensor, z: Tensor, inverse: Tensor) -> Tensor:
    """Return the gradient at the input of :func:`normalised`, from that at its output."""
    eta = u - u.mean(-1, keepdim=True)
    eta.addcmul_(z, (u * z).mean(-1, keepdim=True), value=-1)
    eta *= inverse
    return eta


def _move_statistics(
    module: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, unbiased: Tensor
) -> None:
    if module.running_mean is None or module.running_var is None:
        return
    assert module.num_batches_tracked is not None
    module.num_batches_tracked += 1
    # Without a momentum the statistics are the plain mean over all batches so far.
    share = module.momentum
    if share is None:
        share = 1.0 / float(module.num_batches_tracked)
    module.running_mean.lerp_(mean.to(module.running_mean.dtype), share)
    module.running_var.lerp_(unbiased.to(module.running_var.dtype), share)


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    """``[C]`` as it broadcasts against ``x [B, C, ...]``."""
    return value.view(-1, *[1] * (x.dim() - 2))
