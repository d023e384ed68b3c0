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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import nn

from pipelocal.models.unit import Shape, Unit
from pipelocal.system.tensor_kind import TensorKind


@dataclass(frozen=True, kw_only=True)
class Downstream:
    """What follows a cut, as recipes for building it.

    Args:
        units: the units after the cut, in order.
        shapes: output shape of each unit, without the batch dimension.
        classifier: takes what the last unit passes on.
        crossing: kinds of the tensors that cross the cut, and that each unit passes on, main first.
    """

    units: tuple[Unit, ...]
    shapes: tuple[Shape, ...]
    classifier: Unit
    crossing: tuple[tuple[TensorKind, ...], ...]


def shortest_row(shapes: Sequence[Hashable]) -> list[int]:
    """Choose units such that each accepts the output of the one before it.

    Args:
        shapes: at the cut, and after each unit that follows; the last is the required output. What is
            equal counts as the same shape.

    Returns:
        Indices of the units, from 0, in order: as few as possible but at least one, and the earliest
        among equally short choices; empty if no unit follows.
    """
    rows: dict[Hashable, list[int]] = {}  # the best row among the later units, by its input shape
    for place in reversed(range(len(shapes) - 1)):
        takes, makes = shapes[place], shapes[place + 1]
        rest = [] if makes == shapes[-1] else rows.get(makes)
        if rest is not None and (takes not in rows or len(rest) < len(rows[takes])):
            rows[takes] = [place, *rest]
    return rows.get(shapes[0], [])


def downstream_head(_feature_shape: Shape, _classes: int, *, downstream: Downstream) -> nn.Module:
    """Build new copies of some of the following units and the classifier; logits as the model's own.

    Args:
        downstream: what follows the cut. If several tensors cross it, the head takes them all.
    """
    # The main tensor has another name behind each unit; a skip or a mask is the same only if so named.
    row = shortest_row([(main.shape, main.dtype, *beside) for main, *beside in downstream.crossing])
    units = [*(downstream.units[place] for place in row), downstream.classifier]

    # Module names must not contain dots.
    head = nn.Sequential(OrderedDict((unit.name.replace(".", "/"), unit.make()) for unit in units))
    if len(downstream.crossing[0]) > 1:
        head.takes_beside = True  # type: ignore[assignment]
    return head
