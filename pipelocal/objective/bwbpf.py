"""The global loss trains the classifier alone (BWBPF, arXiv 2312.13311), or everything (deep supervision).

::

    bwbpf              x > [body K] > out > local head > its loss       trains body K
                                       |
                                     detach > classifier > loss         trains the classifier alone

    deep-supervision   the heads of all stages, and the classifier, on the uncut model: the sum of their
                       losses is differentiated through all of it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, autograd, nn

from pipelocal.heads import call_head
from pipelocal.models.payload import Payload, unpack
from pipelocal.objective.greedy import ForwardRecipe, Greedy
from pipelocal.objective.local import LocalPass, Objective, Place, Section
from pipelocal.objective.residual import Residual
from pipelocal.tasks import LossFunction
from pipelocal.tasks.task import loss_of

LEAK = "leak"
LEAK_EVERY = 20
"""Interval in batches at which deep supervision measures its leak, which takes another backward pass."""


@dataclass(frozen=True, kw_only=True)
class BWBPF(ForwardRecipe):
    """Greedy training in which the last stage's body too learns by a local head; its options.

    Args:
        strict: whether the classifier trains on the last body's detached output. Without it this is greedy.
    """

    strict: bool = True

    def for_stage(self, place: Place) -> Objective:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`."""
        return LocalToTheEnd(place) if self.strict and place.number == place.stages else Greedy()


class LocalToTheEnd(Greedy, nn.Module):
    """The last stage with a local head for its body, beside the classifier, whose gradient ends at its input.

    The loss is the sum of both.

    Args:
        place: the last stage's place.
    """

    figure_names = ("local loss",)

    def __init__(self, place: Place) -> None:
        nn.Module.__init__(self)
        self.local = HeadAndLoss(place.sections[0], place.head_loss)

    def loss(self, local: LocalPass, out: Tensor) -> Tensor:
        """See :class:`~pipelocal.objective.greedy.Greedy`."""
        assert local.target is not None
        own = self.local(out, local.x, local.target)
        self.figures["local loss"] = own.detach()
        total: Tensor = super().loss(local, out.detach()) + own
        return total


@dataclass(frozen=True, kw_only=True)
class DeepSupervision(ForwardRecipe):
    """The sum of the losses of all stages' heads, back-propagated through the uncut model: a baseline.

    It is what the released code of BWBPF does, in one process.
    """

    uncut = True

    def for_stage(self, place: Place) -> Objective:
        """See :class:`~pipelocal.objective.local.ObjectiveRecipe`."""
        return SumOfLosses(place)


class SumOfLosses(Greedy, nn.Module):
    """The loss of the classifier, and those of heads within the body, whose gradients add up.

    Args:
        place: of the whole model, with the sections that are stages elsewhere.
    """

    leak: Tensor
    """As it was last measured; saved, so that a run that goes on says the same."""

    def __init__(self, place: Place) -> None:
        nn.Module.__init__(self)
        *inner, _ = place.sections  # the last has the classifier
        self.watches: Sequence[int] = [section.stop for section in inner]
        """Numbers of the units whose outputs the heads take."""
        self.heads = nn.ModuleList(HeadAndLoss(section, place.head_loss) for section in inner)
        names = [f"loss of head {number}" for number in range(1, len(inner) + 1)]
        self.figure_names = (*names, LEAK) if names else ()
        self.register_buffer("leak", torch.zeros(()))
        self._losses: list[Tensor] = []

    def head_backward(self, local: LocalPass) -> tuple[Tensor, Tensor]:
        """See :class:`~pipelocal.objective.local.Objective`; the loss is that of the classifier."""
        assert local.target is not None
        loss, delta = super().head_backward(local)
        x: Payload = local.x
        self._losses = []
        for name, head, stop in zip(self.figure_names, self.heads, self.watches, strict=False):
            self._losses.append(head(local.inner[stop], x, local.target))
            x = local.inner[stop]
            self.figures[name] = self._losses[-1].detach()
        if self._losses:
            if local.step % LEAK_EVERY == 0:
                self.leak.copy_(self._measured(local, delta))
            self.figures[LEAK] = self.leak.clone()
        return loss, delta

    def body_backward(self, local: LocalPass, previous_delta: Tensor | None) -> Residual | None:
        """See :class:`~pipelocal.objective.local.Objective`; all losses in one backward pass."""
        assert previous_delta is None, "there is no stage before"
        losses, self._losses = self._losses, []
        delta, self._delta = self._delta, None
        roots: list[tuple[Tensor, Tensor | None]] = [(loss, None) for loss in losses]
        if local.out.requires_grad:
            roots = [*roots, (local.out, delta)]
        if roots:
            autograd.backward([root for root, _ in roots], [gradient for _, gradient in roots])
        return None

    def _measured(self, local: LocalPass, delta: Tensor) -> Tensor:
        """Return the share, by length, of later losses in the gradient at the first section's output."""
        at, _ = unpack(local.inner[self.watches[0]])
        if not at.requires_grad:
            return delta.new_zeros(())
        (own,) = autograd.grad(self._losses[0], at, retain_graph=True)
        later = [local.out, *self._losses[1:]]
        (rest,) = autograd.grad(later, at, [delta, *[None] * (len(later) - 1)], retain_graph=True)
        length = torch.linalg.vector_norm
        share: Tensor = length(rest) / length(own + rest).clamp_min(torch.finfo(rest.dtype).tiny)
        return share


class HeadAndLoss(nn.Module):
    """An auxiliary head that an objective owns, and its loss.

    Args:
        section: builds the head.
        loss: the loss by which heads train.
    """

    def __init__(self, section: Section, loss: LossFunction | None) -> None:
        super().__init__()
        assert loss is not None, "a stage that is built knows it"
        self.head = section.build_head()
        self._loss = loss

    def forward(self, out: Payload, x: Payload, target: Tensor) -> Tensor:
        """Return the mean loss at an output of the section; ``x`` is its input."""
        kind = next((p.dtype for p in self.head.parameters()), None)
        if isinstance(out, Tensor) and kind is not None:
            out = out.to(kind)
        return loss_of(self._loss, call_head(self.head, out, x), target, 1.0).mean
