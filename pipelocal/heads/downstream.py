"""A head shaped like what follows the cut: a shallow copy of the rest of the model.

After AugLocal (arXiv 2402.17318), whose auxiliary networks are taken from the layers behind. Here it
is the shortest row of the units behind the cut that leads to what the classifier takes, and the
classifier::

    model   stem  16 16 16 | 16->32 32 32 32->64 64 64  classifier         | is the cut
    head                     16->32       32->64        classifier

Of rows of one length it is the one whose units come first. AugLocal spreads its layers evenly; here
units of equal shapes mostly are of one make, so that any of them gives the same head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from pipelocal.models.chain import Shape, Unit


@dataclass(frozen=True, kw_only=True)
class Downstream:
    """What follows a cut, as recipes.

    Args:
        units: behind the cut, in order.
        shapes: output shape of each, without the batch dimension.
        classifier: takes the last one's output.
    """

    units: tuple[Unit, ...]
    shapes: tuple[Shape, ...]
    classifier: Unit


def shortest_row(shapes: Sequence[Shape]) -> list[int]:
    """Which units to take, each of which takes what the one before it makes.

    Args:
        shapes: at the cut, and behind each unit that follows it; the last is what the row must make.

    Returns:
        Places of the units, from 0, in order: as few as possible but at least one, and of rows that
        are equally short the one whose units come first; none where no unit follows.
    """
    rows: dict[Shape, list[int]] = {}  # the best row among the later units, by what it takes
    for place in reversed(range(len(shapes) - 1)):
        takes, makes = shapes[place], shapes[place + 1]
        rest = [] if makes == shapes[-1] else rows.get(makes)
        if rest is not None and (takes not in rows or len(rest) < len(rows[takes])):
            rows[takes] = [place, *rest]
    return rows.get(shapes[0], [])


def downstream_head(feature_shape: Shape, _classes: int, *, downstream: Downstream) -> nn.Module:
    """Some of the units that follow, built anew, and the classifier: logits as the model's own.

    Args:
        feature_shape: shape of one row of the stage's output.
        downstream: what follows the cut.
    """
    row = shortest_row([feature_shape, *downstream.shapes])
    units = [*(downstream.units[place] for place in row), downstream.classifier]

    # A module's name must not hold dots.
    return nn.Sequential(OrderedDict((unit.name.replace(".", "/"), unit.make()) for unit in units))
