"""A head shaped like what follows the cut: a shallow copy of the rest of the model.

After AugLocal (arXiv 2402.17318), whose auxiliary networks are built from the layers that follow. Here a
head is the shortest sequence of units after the cut that produces the classifier's input, followed by the
classifier::

    model   stem  16 16 16 | 16->32 32 32 32->64 64 64  classifier         | is the cut
    head                     16->32       32->64        classifier

Among sequences of equal length it is the one whose units come first. AugLocal spreads its layers evenly;
here units with equal shapes are mostly of the same kind, so that any of them gives the same head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from pipelocal.models.chain import Shape, Unit


@dataclass(frozen=True, kw_only=True)
class Downstream:
    """What follows a cut, as recipes for building it.

    Args:
        units: the units after the cut, in order.
        shapes: output shape of each unit, without the batch dimension.
        classifier: takes the last unit's output.
    """

    units: tuple[Unit, ...]
    shapes: tuple[Shape, ...]
    classifier: Unit


def shortest_row(shapes: Sequence[Shape]) -> list[int]:
    """Choose units such that each accepts the output of the one before it.

    Args:
        shapes: at the cut, and after each unit that follows; the last is the required output.

    Returns:
        Indices of the units, from 0, in order: as few as possible but at least one, and the earliest
        among equally short choices; empty if no unit follows.
    """
    rows: dict[Shape, list[int]] = {}  # the best row among the later units, by its input shape
    for place in reversed(range(len(shapes) - 1)):
        takes, makes = shapes[place], shapes[place + 1]
        rest = [] if makes == shapes[-1] else rows.get(makes)
        if rest is not None and (takes not in rows or len(rest) < len(rows[takes])):
            rows[takes] = [place, *rest]
    return rows.get(shapes[0], [])


def downstream_head(feature_shape: Shape, _classes: int, *, downstream: Downstream) -> nn.Module:
    """Build new copies of some of the following units and the classifier; logits as the model's own.

    Args:
        feature_shape: shape of one row of the stage's output.
        downstream: what follows the cut.
    """
    row = shortest_row([feature_shape, *downstream.shapes])
    units = [*(downstream.units[place] for place in row), downstream.classifier]

    # Module names must not contain dots.
    return nn.Sequential(OrderedDict((unit.name.replace(".", "/"), unit.make()) for unit in units))
