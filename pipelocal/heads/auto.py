"""A head chosen behind each unit by the model's own structure, within a budget of compute.

The first of these that works there, and whose forward multiply-adds are within the budget:

1. the shortest row of the units that follow, with the model's classifier (``twin=2``); it is made
   longer while it is cheap, as rows are of which the units only change the shape;
2. for images, ``conv``;
3. where the features already are what the classifier takes, that alone: for tokens, the model's own norm and
   readout (``twin=0``);
4. ``mlp``, then ``linear``.

If none is, the cheapest that works is taken. The budget is a multiple of an average stage's compute, that is
of the whole model's multiply-adds over the number of stages. So the head behind a unit follows from the
model, the number of stages and the budget alone: ranks agree without a word, and a later command builds the
same heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from pipelocal.errors import UserError
from pipelocal.heads.build import HEADS, build_head
from pipelocal.heads.downstream import Downstream, downstream
from pipelocal.heads.names import HeadBuilder
from pipelocal.heads.rows import choose_row
from pipelocal.models.operations import multiply_adds
from pipelocal.models.unit import Shape
from pipelocal.seeding import seeded

DEFAULT_BUDGET = 2.5
"""Multiply-adds that a head may take, over those of an average stage."""

ENOUGH = 0.25
"""Multiply-adds over those of an average stage up to which a row is made longer."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A head that works behind a unit."""

    name: str
    """As ``--head`` takes it."""
    builder: HeadBuilder
    multiply_adds: int
    """Of the forward pass, for one sample."""
    share: float
    """The same over those of an average stage: what the budget bounds."""


@dataclass(frozen=True, kw_only=True)
class Behind:
    """What there is to choose a head from.

    Args:
        feature_shape: shape of one row of the stage's output.
        classes: number of classes, labels or outputs.
        output_shape: shape of one row of the output.
        target_shape: shape of one row of the targets.
        downstream: what follows the cut.
    """

    feature_shape: Shape
    classes: int
    output_shape: Shape
    target_shape: Shape
    downstream: Downstream

    def chosen(self, budget: float) -> Choice:
        """Return the head that :func:`auto` takes.

        Raises:
            UserError: no head works here; says why the last one does not.
        """
        working: list[Choice] = []
        for choice in self.working():
            if choice.share <= budget:
                return choice
            working.append(choice)
        if not working:
            self.build(HEADS.get("linear"))  # says why not
        return min(working, key=lambda choice: choice.multiply_adds)

    def working(self) -> Iterator[Choice]:
        """Yield the heads that work here, the preferred first."""
        kinds, shape = self.downstream.kinds, self.feature_shape
        shortest = len(choose_row(kinds) or [])
        rows: list[Choice] = []
        for depth in range(shortest, len(kinds)):
            rows += self._row(depth)
            if rows and rows[-1].share >= ENOUGH:
                break
        yield from reversed(rows)
        # On smaller maps its BatchNorm would want more than one sample, as that of dgl always does.
        if len(shape) == 3 and max(shape[1:]) > 2:
            yield from self._named("conv")
        if shortest > 0:
            yield from self._row(0)
        yield from self._named("mlp")
        yield from self._named("linear")

    def build(self, builder: HeadBuilder) -> nn.Module:
        """Build a head and try it; see :func:`~pipelocal.heads.build.build_head`."""
        return build_head(
            builder,
            self.feature_shape,
            classes=self.classes,
            target_shape=self.target_shape,
            output_shape=self.output_shape,
            downstream=self.downstream,
        )

    def _row(self, depth: int) -> Iterator[Choice]:
        kinds, counts = self.downstream.kinds, self.downstream.multiply_adds()
        row = choose_row(kinds, depth)
        if row is None or len(row) != depth:
            return
        builder = partial(downstream, depth=depth, twin=True)
        # Units that pass on one tensor were tried on such when the chain was.
        main, *beside = self.downstream.crossing[0]
        if (beside or main.dtype != torch.get_default_dtype()) and not self._works(builder):
            return
        own = sum(counts[self.downstream.start + place] for place in row) + counts[-1]
        yield self._choice(f"twin={depth}", builder, own)

    def _named(self, name: str) -> Iterator[Choice]:
        builder = HEADS.get(name)
        if self._works(builder):
            given = self.downstream.crossing[0][:1]
            (own,) = multiply_adds([(partial(self.build, builder), given)])
            yield self._choice(name, builder, own)

    def _choice(self, name: str, builder: HeadBuilder, own: int) -> Choice:
        stage = sum(self.downstream.multiply_adds()) / self.downstream.stages
        return Choice(
            name=name, builder=builder, multiply_adds=own, share=own / stage if stage else 0.0
        )

    def _works(self, builder: HeadBuilder) -> bool:
        try:
            with torch.device("cpu"), seeded(0, "trial"):
                self.build(builder)
        except UserError:
            return False
        return True


@HEADS.register("auto")
def auto(
    feature_shape: Shape,
    classes: int,
    *,
    output_shape: Shape,
    target_shape: Shape,
    downstream: Downstream,
    budget: float = DEFAULT_BUDGET,
) -> nn.Module:
    """Build the first head that works within a budget; see :mod:`pipelocal.heads.auto`.

    Args:
        feature_shape: shape of one row of the stage's output.
        classes: number of classes, labels or outputs.
        output_shape: shape of one row of the output.
        target_shape: shape of one row of the targets.
        downstream: what follows the cut.
        budget: most multiply-adds of the head, over those of an average stage.

    Raises:
        UserError: no head works here.
    """
    behind = Behind(
        feature_shape=feature_shape,
        classes=classes,
        output_shape=output_shape,
        target_shape=target_shape,
        downstream=downstream,
    )
    return behind.build(behind.chosen(budget).builder)


def budget_of(builder: HeadBuilder) -> float | None:
    """Return the budget of :func:`auto`; None if the builder is another."""
    if isinstance(builder, partial):
        return builder.keywords.get("budget", DEFAULT_BUDGET) if builder.func is auto else None
    return DEFAULT_BUDGET if builder is auto else None
