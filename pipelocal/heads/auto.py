"""A head chosen behind each unit by the model's own structure, within a budget of compute.

The first of these that works there, and whose forward multiply-adds are within the budget:

1. the shortest row of the units that follow, with the model's classifier (``twin=2``); made longer, up to
   three units, as long as it takes at most six tenths of the budget;
2. for images, such a row on coarser maps (``twin=3@2``, ``twin=2@2``, ..., ``twin=3@4``, ...);
3. for images, ``conv``;
4. where the features already are what the classifier takes, that alone: for tokens, the model's own norm and
   readout (``twin=0``);
5. ``mlp``, then ``linear``.

If none is, the cheapest that works is taken. The budget is a share of the rest of the network, that is of
what an average stage leaves of the model's multiply-adds: with 1, a head may be all of it. So the head behind
a unit follows from the model, the number of stages and the budget alone: ranks agree without a word, and a
later command builds the same heads.
"""

from __future__ import annotations

import math
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

DEFAULT_BUDGET = 1.0
"""Multiply-adds that a head may take, over those of the rest of the network."""

DEPTH = 3
"""Units up to which a row is made longer: what brought back-propagation's accuracy (benchmarks/accuracy)."""

SQUARES = (2, 4)
"""Pixels of a side of the squares over which the coarser maps are averaged."""

LONGER = 0.6
"""Share of the budget up to which a row on whole maps is made longer. So the step of a stage takes some seven
tenths of the uncut network's at most, where the shortest row does not take more."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A head that works behind a unit."""

    name: str
    """As ``--head`` takes it."""
    builder: HeadBuilder
    multiply_adds: int
    """Of the forward pass, for one sample."""
    least_budget: float
    """Least budget that it is within: those over the multiply-adds of the rest of the network, more for a row
    that is made longer."""
    depth: int | None = None
    """Units of a row on whole maps; None for another head."""


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
        within = next(self.working(budget), None)
        if within is not None:
            return within
        for choice in sorted(self._choices(), key=lambda choice: choice.multiply_adds):
            if self._works(choice.builder):
                return choice
        self.build(HEADS.get("linear"))  # says why not
        raise AssertionError("linear works alone, and not when it is tried")

    def working(self, budget: float = math.inf) -> Iterator[Choice]:
        """Yield the heads within a budget that work here, the preferred first."""
        # Units that pass on one tensor were tried on such when the chain was.
        main, *beside = self.downstream.crossing[0]
        tried = not beside and main.dtype == torch.get_default_dtype()
        for choice in self._choices():
            known = tried and choice.depth is not None
            if choice.least_budget <= budget and (known or self._works(choice.builder)):
                yield choice

    @property
    def _shortest(self) -> int:
        """Units of the shortest row that has any; 0 if none follow."""
        return len(choose_row(self.downstream.kinds) or [])

    def _choices(self) -> Iterator[Choice]:
        """Yield all heads that there may be, the preferred first; none is built with memory."""
        for square in (None, *SQUARES):
            for depth in range(max(DEPTH, self._shortest), 0, -1):
                yield from self._row(depth, square)
        # On smaller maps its BatchNorm would want more than one sample, as that of dgl always does.
        if len(self.feature_shape) == 3 and max(self.feature_shape[1:]) > 2:
            yield self._named("conv")
        yield from self._row(0)
        yield self._named("mlp")
        yield self._named("linear")

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

    def _row(self, depth: int, square: int | None = None) -> Iterator[Choice]:
        kinds, counts = self.downstream.kinds, self.downstream.multiply_adds()
        row = choose_row(kinds, depth)
        if row is None or len(row) != depth:
            return
        if square is not None:
            if self._has_maps_wider_than(square):
                name = f"twin={depth}@{square}"
                yield self._counted(
                    name, partial(downstream, depth=depth, square=square, twin=True)
                )
            return
        own = sum(counts[self.downstream.start + place] for place in row) + counts[-1]
        builder = partial(downstream, depth=depth, twin=True)
        yield self._choice(f"twin={depth}", builder, own, depth)

    def _has_maps_wider_than(self, square: int) -> bool:
        """Whether what crosses the cut and what the classifier takes stay maps if averaged over squares.

        A map of one pixel has no statistics for the BatchNorm of a single sample.
        """
        shapes = (self.feature_shape, self.downstream.crossing[-1][0].shape)
        return all(len(shape) == 3 and min(shape[1:]) > square for shape in shapes)

    def _named(self, name: str) -> Choice:
        return self._counted(name, HEADS.get(name))

    def _counted(self, name: str, builder: HeadBuilder) -> Choice:
        (own,) = multiply_adds([(partial(self.build, builder), self.downstream.crossing[0][:1])])
        return self._choice(name, builder, own)

    def _choice(
        self, name: str, builder: HeadBuilder, own: int, depth: int | None = None
    ) -> Choice:
        rest = sum(self.downstream.multiply_adds()) * (1 - 1 / self.downstream.stages)
        share = own / rest if rest else 0.0
        longer = depth is not None and depth > self._shortest
        return Choice(
            name=name,
            builder=builder,
            multiply_adds=own,
            least_budget=share / LONGER if longer else share,
            depth=depth,
        )

    def _works(self, builder: HeadBuilder) -> bool:
        try:
            with torch.device("cpu"), seeded(0, "trial"):
                self.build(builder)
        except (UserError, RuntimeError):  # the second where it is too large for any memory
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
        budget: most multiply-adds of the head, over those of the rest of the network.

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
