"""A twin whose classifier is drawn to the model's own: the last stage's weights flow back to it.

Every ``every`` batches the copy of the classifier moves a share of the way to the classifier that the last
stage trains. So all stages learn for nearly the same classifier. The copies of units stay their own: drawn
too, they bring no more, and serve the early stages worse, as they see other inputs than the real units.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from pipelocal.errors import UserError
from pipelocal.heads.downstream import Downstream, downstream
from pipelocal.heads.names import HeadBuilder
from pipelocal.heads.rows import Depth, Rule
from pipelocal.models.unit import Shape

EVERY = 8
"""Batches from one time to the next."""

SPEED = 0.02
"""Share of the way that a copy moves, for each batch."""


def guided(
    feature_shape: Shape,
    classes: int,
    *,
    output_shape: Shape,
    downstream: Downstream,
    depth: Depth = None,
    rule: Rule | None = None,
    square: int | None = None,
    every: int = EVERY,
) -> nn.Module:
    """Build a twin; see :func:`~pipelocal.heads.downstream.downstream`. A run draws its classifier.

    Args:
        feature_shape: shape of one row of the stage's output.
        classes: number of outputs.
        output_shape: shape of one row of the output.
        downstream: what follows the cut.
        depth: how many units, or ``"all"``.
        rule: ``"even"`` or ``"next"``.
        square: pixels of a side of the squares over which it averages maps first; None to leave them.
        every: batches from one time that it is drawn to the next.

    Raises:
        UserError: as :func:`~pipelocal.heads.downstream.downstream`, or ``every`` is none.
    """
    if every < 1:
        raise UserError(f"head 'guided': every={every}: give a number of batches of at least 1")
    build = partial(_twin, feature_shape, classes, output_shape=output_shape)
    return build(downstream=downstream, depth=depth, rule=rule, square=square)


_twin = partial(downstream, twin=True)


def guided_every(builder: HeadBuilder) -> int | None:
    """Return after how many batches the classifiers of heads are drawn; None if never."""
    every: int | None = None
    while isinstance(builder, partial):
        every = builder.keywords.get("every") if every is None else every
        builder = builder.func
    if builder is not guided:
        return None
    return EVERY if every is None else every


def share_of(every: int) -> float:
    """Return the share of the way that a copy moves each time, so that its speed is the same."""
    return 1.0 - (1.0 - SPEED) ** every


def classifier_copy(head: nn.Module) -> nn.Module:
    """Return the copy of the classifier in a head, which is its last part."""
    *_, last = head.children()
    return last
