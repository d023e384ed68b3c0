"""Estimates gradients from what a pass with noise changed, and decorrelates a layer's inputs.

For a row b, a step t and a layer l let h be what its units receive, dh the change of h, xi the noise over its
standard deviation, and L what the row's step adds to the batch's loss, with change dL. Each rule is an
estimate of the gradient at h, ``[B, S, n_l]``::

    np          C_bt xi_blt / std
    trajectory  N C_bt dh_blt / |dh_b|^2           N numbers of a row are perturbed; |dh_b| over all of them
    released    sqrt(N) dL_t dh_blt / |dh_lt|^2    dL_t of the batch; |dh_lt| over the batch; N of units, and
                                                   of the stage's inputs

C, the credit of a step, is the change of the row's loss from that step on: noise changes nothing before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from pipelocal.models.node_layer import Link, last_steps


def credit_of(differences: Tensor, steps: int) -> Tensor:
    """Sum the changes of the loss over a step and those after it.

    Args:
        differences: for each row and step ``[B, S]``; the steps before have none.
        steps: number of steps of the layer.

    Returns:
        ``[B, steps]``.
    """
    return last_steps(differences, steps).flip(1).cumsum(1).flip(1)


def node_perturbation(noise: Sequence[Tensor], differences: Tensor, *, std: float) -> list[Tensor]:
    """Estimate the gradients at what the layers' units receive by rule ``np``.

    Args:
        noise: of each layer, with a standard deviation of 1, ``[B, S, n]``.
        differences: changes of the loss ``[B, S]``.
        std: standard deviation of what was added.
    """
    return [credit_of(differences, xi.shape[1])[:, :, None] * xi / std for xi in noise]


def trajectory(changes: Sequence[Tensor], differences: Tensor) -> list[Tensor]:
    """Estimate the same by rule ``trajectory``.

    Args:
        changes: of what each layer's units receive, ``[B, S, n]``.
        differences: changes of the loss ``[B, S]``.
    """
    numbers = sum(change[0].numel() for change in changes)
    squares = torch.stack([change.square().sum((1, 2)) for change in changes]).sum(0)
    factor = (numbers / _positive(squares))[:, None]
    return [
        (factor * credit_of(differences, change.shape[1]))[:, :, None] * change
        for change in changes
    ]


def released(changes: Sequence[Tensor], differences: Tensor, *, inputs: int) -> list[Tensor]:
    """Estimate a multiple of the same by rule ``released``.

    Its mean is ``sqrt(N) / (n_l B)`` times the gradient for a single layer, and steps get no credit for later
    losses but through dh.

    Args:
        changes: of what each layer's units receive, ``[B, S, n]``.
        differences: changes of the loss ``[B, S]``.
        inputs: width of what the first layer is given.
    """
    root = sqrt(inputs + sum(change.shape[2] for change in changes))
    found = []
    for change in changes:
        of_batch = last_steps(differences, change.shape[1]).sum(0)
        squares = change.square().sum((0, 2))
        found.append((root * of_batch / _positive(squares))[None, :, None] * change)
    return found


def weight_gradient(at_units: Tensor, link: Link) -> Tensor:
    """Turn the gradient at what units receive into that of a matrix.

    Args:
        at_units: ``[B, S, n]``.
        link: the matrix ``[n, m]``, and what came in through it.
    """
    at_units = last_steps(at_units, link.inputs.shape[1]).to(link.inputs.dtype)
    return torch.einsum("bsn,bsm->nm", at_units, link.inputs)


def decorrelate(link: Link, rate: float) -> None:
    """Move D of a link by ``-rate C D``, where C is the mean of ``x x^T`` without its diagonal.

    Args:
        link: x is what came in, after D; the mean is over rows and steps.
        rate: learning rate of D.
    """
    x = link.inputs.flatten(0, 1)
    correlation = x.T @ x / len(x)
    correlation.fill_diagonal_(0)
    link.decorrelation.sub_(rate * (correlation @ link.decorrelation))


def _positive(squares: Tensor) -> Tensor:
    return squares.clamp_min(torch.finfo(squares.dtype).tiny)
