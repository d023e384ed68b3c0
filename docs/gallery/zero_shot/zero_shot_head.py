"""A head that looks at some regions of a feature map, and answers with classes that it may never have seen.

After ERPCNet (arXiv 2111.02139, IEEE TCSVT 32(8), 2022), of which the abstract and a public review alone were
read; there is no code. These have: a global feature and local ones, picked step by step by a policy; partial
convolution for the local ones; a reward guided by entropy. The form of each is our reading.
"""

from __future__ import annotations

from typing import NamedTuple

import pipelocal as pl
import torch
import torch.nn.functional as F
from partial_convolution import PartialConv2d
from region_policy import RegionPolicy, entropy, log_policy, pick
from torch import Tensor, nn


class Episode(NamedTuple):
    """What a head did with a batch in T steps."""

    logits: Tensor
    """Of the classes asked for, before the first step and after each, ``[B, T + 1, classes]``."""
    log_p: Tensor
    """Log probabilities of the picks ``[B, T]``."""
    entropy: Tensor
    """Entropy of the policy at each step ``[B, T]``, in nats."""
    picks: Tensor
    """Numbers of the regions, row by row from 0, int64 ``[B, T]``."""


class ZeroShotHead(nn.Module):
    """Logits of a feature map's classes, by the classes' attributes.

    In training it answers with seen classes alone: the logits of the others are -inf, and their attributes
    are not used. In evaluation it answers with all classes. The policy reads the features and does not train
    them.

    Args:
        feature_shape: shape of one row of the stage's output, ``(C, H, W)``.
        classes: number of classes.
        attributes: of each class, the seen ones first, float32 ``[classes, A]``.
        seen: number of classes that training has.
        steps: number of regions to look at; 0 for the global feature alone.
        learned: whether a policy learns to pick them; otherwise they are picked evenly at random in training,
            and in the order of their numbers in evaluation.
        gamma: what is taken off the logits of seen classes in evaluation (calibrated stacking).
        grid: regions in a row and in a column.
        width: channels of the global and the local features.

    Raises:
        UserError: the numbers do not go together.
    """

    attributes: Tensor
    gamma: Tensor

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        classes: int,
        *,
        attributes: Tensor,
        seen: int,
        steps: int,
        learned: bool = True,
        gamma: float = 0.0,
        grid: int = 2,
        width: int = 32,
    ) -> None:
        super().__init__()
        channels, height, across = feature_shape
        if len(attributes) != classes or not 0 < seen <= classes:
            raise pl.UserError(
                f"attributes of {len(attributes)} classes, {seen} of them seen, for a task of {classes}: "
                f"give one row for each class, and seen= from 1 to {classes}"
            )
        if height % grid or across % grid or not 0 <= steps <= grid * grid:
            raise pl.UserError(
                f"{steps} of {grid} x {grid} regions of features {height} x {across}: give a grid that "
                f"divides both sides, and no more steps than regions"
            )
        self.seen, self.steps, self.grid = seen, steps, grid
        self.register_buffer("attributes", attributes.clone())
        self.register_buffer("gamma", torch.tensor(float(gamma)))
        self.look = PartialConv2d(channels, width)
        self.describe = nn.Linear(width, attributes.shape[1])
        self.policy = RegionPolicy(channels, width + attributes.shape[1]) if learned else None
        self.episode: Episode | None = None
        """The last batch of training, until the objective takes it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` of features ``[B, C, H, W]``."""
        if not self.training:
            logits = self._episode(x, self.attributes, sample=False).logits[:, -1]
            return torch.cat([logits[:, : self.seen] - self.gamma, logits[:, self.seen :]], 1)
        self.episode = self._episode(x, self.attributes[: self.seen], sample=True)
        unseen = len(self.attributes) - self.seen
        return F.pad(self.episode.logits[:, -1], (0, unseen), value=float("-inf"))

    @torch.no_grad()
    def picks(self, x: Tensor) -> Tensor:
        """Return the regions that are picked in evaluation, int64 ``[B, T]``."""
        return self._episode(x, self.attributes, sample=False).picks

    def take_episode(self) -> Episode:
        """Return the last batch of training, and keep it no longer."""
        episode, self.episode = self.episode, None
        assert episode is not None, "the head has not been run in training"
        return episode

    def _episode(self, x: Tensor, attributes: Tensor, *, sample: bool) -> Episode:
        """Pick regions one after another, and answer before the first and after each."""
        cells = in_cells(x, self.grid)
        regions = cells.detach().mean((3, 4))
        whole = self._feature(x)
        described = self.describe(whole)
        rows = torch.arange(len(x), device=x.device)
        taken = torch.zeros(regions.shape[:2], dtype=torch.bool, device=x.device)
        found = torch.zeros_like(whole)
        answers, log_ps, entropies, picks = [described], [], [], []
        for step in range(1, self.steps + 1):
            scores = x.new_zeros(taken.shape)
            if self.policy is not None:
                scores = self.policy(regions, torch.cat([whole, described], 1).detach())
            log_p = log_policy(scores, taken)
            picked = pick(log_p.detach(), sample=sample)
            taken = taken.scatter(1, picked.unsqueeze(1), True)
            found = found + self._feature(cells[rows, picked])
            described = self.describe(whole + found / step)
            answers.append(described)
            log_ps.append(log_p.gather(1, picked.unsqueeze(1)).squeeze(1))
            entropies.append(entropy(log_p))
            picks.append(picked)
        logits = torch.stack(answers, 1) @ attributes.T
        if not picks:
            none = x.new_zeros(len(x), 0)
            return Episode(logits, none, none, none.long())
        columns = [torch.stack(each, 1) for each in (log_ps, entropies, picks)]
        return Episode(logits, *columns)

    def _feature(self, x: Tensor) -> Tensor:
        """Return the feature ``[B, width]`` of an image, or of a region whose surroundings are closed."""
        feature: Tensor = F.relu(self.look(x)).mean((2, 3))
        return feature


def in_cells(x: Tensor, grid: int) -> Tensor:
    """Return the regions of an even grid, row by row, ``[B, grid * grid, C, h, w]``, of ``[B, C, H, W]``."""
    rows = x.unflatten(2, (grid, -1)).unflatten(4, (grid, -1))  # [B, C, grid, h, grid, w]
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
