"""The policy that picks regions of an image one after another, its reward, and how it learns.

Names: B rows, R regions, T steps, S seen classes. Log probabilities of regions that are taken are -inf.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RegionPolicy(nn.Module):
    """Scores each region from its own features and from what is known of the whole image so far.

    Args:
        region: features of a region.
        known: features of the whole.
        hidden: units between.
    """

    def __init__(self, region: int, known: int, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(region + known, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, regions: Tensor, known: Tensor) -> Tensor:
        """Return the scores ``[B, R]`` of regions ``[B, R, region]``, with known ``[B, known]``."""
        beside = known.unsqueeze(1).expand(-1, regions.shape[1], -1)
        scores: Tensor = self.layers(torch.cat([regions, beside], 2)).squeeze(2)
        return scores


def log_policy(scores: Tensor, taken: Tensor) -> Tensor:
    """Return log probabilities over the regions that are not taken.

    Args:
        scores: ``[B, R]``.
        taken: which regions are, bool ``[B, R]``.
    """
    return scores.masked_fill(taken, float("-inf")).log_softmax(1)


def pick(log_p: Tensor, *, sample: bool) -> Tensor:
    """Pick a region of each row, int64 ``[B]``, by log probabilities ``[B, R]``.

    Args:
        log_p: log probabilities.
        sample: draw it from torch's global generator, which pipelocal seeds for each stage and batch in
            training; or take the most likely one, and the first of several.
    """
    return torch.multinomial(log_p.exp(), 1).squeeze(1) if sample else log_p.argmax(1)


def entropy(log_p: Tensor) -> Tensor:
    """Return the entropy, in nats, of log probabilities over the last dimension."""
    p = log_p.exp()
    return -(p * log_p.masked_fill(p == 0, 0.0)).sum(-1)


def rewards(logits: Tensor, labels: Tensor, *, certainty: float) -> Tensor:
    """Return the reward ``[B, T]`` of each step, which turned the answer before it into the one behind it::

        log p_t(y) - log p_(t-1)(y)  +  certainty * (H(p_(t-1)) - H(p_t))    if y is the arg-max of p_t
                                     -  certainty * (H(p_(t-1)) - H(p_t))    if it is not

    Args:
        logits: of the seen classes, before the first step and after each, ``[B, T + 1, S]``.
        labels: y, int64 ``[B]``.
        certainty: weight of the entropy's part; 0 leaves it out.
    """
    log_p = logits.log_softmax(-1)
    surer = -entropy(log_p).diff(dim=1)
    right = logits[:, 1:].argmax(-1) == labels.unsqueeze(1)
    of_label = log_p.gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1)).squeeze(2)
    return of_label.diff(dim=1) + certainty * torch.where(right, surer, -surer)


def to_go(rewards: Tensor) -> Tensor:
    """Return the return of each step, the sum of its reward and all later ones; both ``[B, T]``."""
    return rewards.flip(1).cumsum(1).flip(1)


def policy_loss(log_p: Tensor, returns: Tensor, baseline: Tensor) -> Tensor:
    """Return the scalar whose gradient is minus REINFORCE's estimate of that of the expected reward.

    Args:
        log_p: log probabilities of the regions that were picked, ``[B, T]``.
        returns: of these steps, held constant, ``[B, T]``.
        baseline: a number for each step that does not depend on the batch's picks, ``[T]``.
    """
    return -((returns - baseline).detach() * log_p).sum(1).mean()
