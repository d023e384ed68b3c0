"""The objective of a stage whose head picks regions: cross entropy of its answers, REINFORCE for picks."""

from __future__ import annotations

import pipelocal as pl
import torch
import torch.nn.functional as F
from region_policy import policy_loss, rewards, to_go
from torch import Tensor, nn
from zero_shot_head import ZeroShotHead


class PolicyGradient(pl.Greedy, nn.Module):
    """Trains a :class:`~zero_shot_head.ZeroShotHead`, and the stage's body through its answers.

    The loss is the mean cross entropy, over the seen classes, of the answers before the first step and after
    each (a reward compares two of them, so each has to be worth something); and, for the policy alone,
    REINFORCE's loss with a running mean of each step's returns as its baseline, less a bonus for the policy's
    entropy.

    Args:
        steps: those of the head.
        certainty: weight of the entropy's part in the reward.
        bonus: weight of the policy's entropy.
        keep: share of the baseline that a batch leaves as it is.
    """

    baseline: Tensor
    figure_names = ("reward", "policy entropy", "on digits")

    def __init__(
        self, steps: int, *, certainty: float = 1.0, bonus: float = 0.01, keep: float = 0.95
    ) -> None:
        nn.Module.__init__(self)
        self.certainty, self.bonus, self.keep = certainty, bonus, keep
        self.register_buffer("baseline", torch.zeros(steps))

    def loss(self, local: pl.LocalPass, out: Tensor) -> Tensor:
        """See :class:`pipelocal.Objective`; targets are those of :class:`~zero_shot_task.ZeroShot`."""
        super().loss(local, out)  # runs the head, and notes its answer for the task's figures
        assert isinstance(local.head, ZeroShotHead)
        assert local.target is not None
        episode = local.head.take_episode()
        labels, relevant = local.target[:, 0], local.target[:, 1:]
        steps = episode.picks.shape[1]
        loss = F.cross_entropy(episode.logits.flatten(0, 1), labels.repeat_interleave(steps + 1))
        with torch.no_grad():
            returns = to_go(rewards(episode.logits, labels, certainty=self.certainty))
            self.figures["reward"] = returns[:, :1].sum(1).mean()  # 0 where there is no step
            self.figures["policy entropy"] = episode.entropy.sum(1).mean() / max(steps, 1)
            hits = relevant.gather(1, episode.picks).sum(1).to(loss.dtype)
            self.figures["on digits"] = hits.mean() / max(steps, 1)
        if local.head.policy is not None:
            loss = loss + policy_loss(episode.log_p, returns, self.baseline)
            loss = loss - self.bonus * episode.entropy.sum(1).mean()
            self.baseline.lerp_(returns.mean(0), 1 - self.keep)
        return loss

    def extra_repr(self) -> str:
        """Return the arguments, by which a run that goes on is told from another."""
        return f"certainty={self.certainty}, bonus={self.bonus}, keep={self.keep}"
