"""Softmax cross entropy with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelocal.errors import UserError


def cross_entropy_with_gradient(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of N predictions, and its gradient at the logits.

    ::

        l = mean of ( log sum_c exp(logits_c) - logits_target )
        dl/dlogits = ( softmax(logits) - onehot(target) ) / N

    Args:
        logits: ``[..., classes]``, of a floating dtype.
        target: ``[...]``, int64.

    Returns:
        The loss, a scalar, and the gradient, of the logits' shape and dtype.

    Raises:
        UserError: the targets are shares of several classes.
    """
    if target.is_floating_point():
        raise UserError(
            f"targets of {target.dtype}: the formulas of --bp-free and lg-fg are of one class a prediction, "
            f"not of shares of several: give labels, int64"
        )
    flat, labels = logits.flatten(0, -2), target.flatten()[:, None]
    log_shares = flat - torch.logsumexp(flat, dim=1, keepdim=True)
    loss = -log_shares.gather(1, labels).mean()
    gradient = log_shares.exp()
    gradient.scatter_add_(1, labels, gradient.new_full(labels.shape, -1.0))
    gradient /= len(labels)
    return loss, gradient.view_as(logits)
