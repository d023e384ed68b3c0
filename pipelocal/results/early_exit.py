"""A trained network as a plain module: uncut, or with the heads of all stages for early exits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.heads import call_head
from pipelocal.heads.early import EarlyNetwork, through
from pipelocal.models.payload import each, pack
from pipelocal.results.saved_run import FinishedRun
from pipelocal.tasks import Classification, Task


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The predictions of :meth:`HeadedNetwork.predict`, for each sample."""

    label: Tensor
    """Predicted class, int64 ``[B]``."""
    confidence: Tensor
    """Probability of the label according to the head that answered, ``[B]``."""
    stage: Tensor
    """Number of the stage whose head answered, from 1, int64 ``[B]``."""


class HeadedNetwork(nn.Module):
    """All bodies in sequence, with a head after each.

    Args:
        bodies: the bodies of the stages, in order.
        heads: the head of each stage; the last is the model's classifier.
        silent: numbers of the stages, from 1, whose heads never learnt anything, and neither answer nor vote.
        task: what the network has learnt; by default classification.
    """

    def __init__(
        self,
        bodies: list[nn.Module],
        heads: list[nn.Module],
        *,
        silent: Collection[int] = (),
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.silent = frozenset(silent)
        self.task = Classification() if task is None else task
        self.bodies = nn.ModuleList(bodies)
        self.heads = nn.ModuleList(heads)

    @classmethod
    def of(cls, run: FinishedRun) -> HeadedNetwork:
        """Build the network of a finished run, on the CPU, in evaluation mode."""
        stages = run.stages(torch.device("cpu"))
        silent = [stage.number for stage in stages if run.blueprint.silent(stage.number)]
        return cls(
            [stage.body for stage in stages],
            [stage.head for stage in stages],
            silent=silent,
            task=run.blueprint.recipe.task,
        ).eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the last head's output, such as logits ``[B, ..., classes]``, as the uncut model does."""
        return through(self.bodies, self.heads[-1], inputs)

    def all_logits(self, *inputs: Tensor) -> list[Tensor]:
        """Compute every head's output, such as logits ``[B, ..., classes]``, in order."""
        logits = []
        x = pack(inputs[0], inputs[1:])
        for body, head in zip(self.bodies, self.heads, strict=True):
            before, x = x, body(x)
            logits.append(call_head(head, x, before))
        return logits

    def ensemble(self, *inputs: Tensor) -> Tensor:
        """Compute the mean of the heads' votes: class probabilities ``[B, ..., classes]``, for example."""
        heard = [
            self.task.votes(output)
            for number, output in enumerate(self.all_logits(*inputs), start=1)
            if number not in self.silent
        ]
        return torch.stack(heard).mean(0)

    @torch.no_grad()
    def predict(self, *inputs: Tensor, until: float) -> Prediction:
        """Predict each sample with the first head that is confident enough, or with the last.

        Samples stop at the head that answers.

        Args:
            inputs: samples ``[B, ...]`` with one label each; a model of several inputs takes them all.
            until: least probability of the label, 0 to 1, at which an earlier head may answer. With
                more than 1 the last head answers all.

        Raises:
            UserError: the network has not learnt classification, so that no head is more or less sure.
        """
        if not isinstance(self.task, Classification):
            raise UserError(
                f"predict answers with a class, and this run learnt {type(self.task).__name__}: call the "
                f"network itself, or its ensemble()"
            )
        rows, device = len(inputs[0]), inputs[0].device
        label = torch.zeros(rows, dtype=torch.int64, device=device)
        stage = torch.zeros_like(label)
        confidence = torch.zeros(rows, device=device)
        left = torch.arange(rows, device=device)
        x = pack(inputs[0], inputs[1:])
        for number, (body, head) in enumerate(zip(self.bodies, self.heads, strict=True), start=1):
            before, x = x, body(x)
            if number in self.silent:
                continue
            sure, best = call_head(head, x, before).softmax(-1).max(-1)
            last = number == len(self.bodies)
            answers = torch.ones_like(best, dtype=torch.bool) if last else sure >= until
            there = left[answers]
            label[there], confidence[there] = best[answers], sure[answers].to(confidence.dtype)
            stage[there] = number
            x, left = each(partial(_rows, which=~answers), x), left[~answers]
            if len(left) == 0:
                break
        return Prediction(label=label, confidence=confidence, stage=stage)


def early_network(run: FinishedRun, stage: int) -> EarlyNetwork:
    """The network of a finished run up to a stage, on the CPU, in evaluation mode."""
    stages = run.stages(torch.device("cpu"))[:stage]
    return EarlyNetwork([each.body for each in stages], stages[-1].head).eval()


def _rows(tensor: Tensor, *, which: Tensor) -> Tensor:
    return tensor[which]


def load(run: str, *, stage: int | None = None, averaged: bool = False) -> nn.Module:
    """The uncut model of a finished run, in evaluation mode, with the model's own names.

    Args:
        run: the run's folder.
        stage: number of a stage, from 1: the network up to it, with its head in place of the classifier. By
            default, and for the last stage, the whole model.
        averaged: take the averaged weights, of a run with ``--ema``.

    Raises:
        UserError: no finished run, one without averaged weights, or a damaged file; there is no such stage,
            or its head never learnt anything.
    """
    finished = FinishedRun(run, averaged=averaged)
    if stage is not None:
        finished.check_stage(stage, option="stage")
        if stage < finished.blueprint.stages:
            return early_network(finished, stage)
    return finished.whole().eval()


def load_with_heads(run: str, *, averaged: bool = False) -> HeadedNetwork:
    """The network of a finished run with the heads of all its stages, in evaluation mode.

    Args:
        run: the run's folder.
        averaged: take the averaged weights, of a run with ``--ema``.

    Raises:
        UserError: no finished run, one without averaged weights, or a damaged file.
    """
    return HeadedNetwork.of(FinishedRun(run, averaged=averaged))
