"""A head made of what follows the cut: copies of some of the units there, then the model's own classifier.

After AugLocal (arXiv 2402.17318), whose auxiliary networks of D layers behind layer l of L are built like
the layers at ``l + (L - l - 1) / D * i``, i = 1..D. That is the rule ``even``. The rule ``next`` takes the
earliest. Here each unit must take what the one before it makes, and the classifier what the last one
makes, so rows are as near to the rule as shapes allow; without a depth it is the shortest such row::

    model               stem 16 | 16 16 16>32 32 32 32>64 64 64 classifier          | is the cut
    downstream                          16>32       32>64       classifier
    downstream=4                     16 16>32       32>64    64 classifier
    downstream=4:next             16 16 16>32       32>64       classifier

With depth 0 it is the classifier alone: for tokens, the model's own norm and readout. A twin starts with the
weights of the real units. If it copies all that follow, the stage's gradient is back-propagation's, and
stays so, since copies and units are trained alike from there on. With a square of n, maps are averaged over
squares of n x n pixels first, which makes the copies' convolutions cheaper by n * n.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from torch import nn

from pipelocal.errors import UserError
from pipelocal.heads.rows import Depth, Rule, check_row, choose_row
from pipelocal.models.unit import Shape, Unit, build_unit
from pipelocal.system.tensor_kind import TensorKind


@dataclass(frozen=True, kw_only=True)
class Downstream:
    """What follows a cut, as recipes for building it.

    Args:
        units: the units after the cut, in order.
        shapes: output shape of each unit, without the batch dimension.
        classifier: takes what the last unit passes on.
        crossing: kinds of the tensors that cross the cut, and that each unit passes on, main first.
        start: index in the whole model of the first unit after the cut.
        stages: number of stages of the network.
        seed: of the run; with it :func:`~pipelocal.models.unit.build_unit` gives the real units' weights.
        multiply_adds: counts, for one sample, those of the forward pass of each unit of the whole model.
    """

    units: tuple[Unit, ...]
    shapes: tuple[Shape, ...]
    classifier: Unit
    crossing: tuple[tuple[TensorKind, ...], ...]
    start: int
    stages: int
    seed: int
    multiply_adds: Callable[[], tuple[int, ...]] = field(compare=False)

    @property
    def kinds(self) -> list[Hashable]:
        """What crosses the cut and what each unit passes on, to compare what one makes and another takes."""
        # The main tensor has another name behind each unit; a skip or a mask is the same only if so named.
        return [(main.shape, main.dtype, *beside) for main, *beside in self.crossing]


def downstream(
    feature_shape: Shape,
    _classes: int,
    *,
    output_shape: Shape,
    downstream: Downstream,
    depth: Depth = None,
    rule: Rule | None = None,
    square: int | None = None,
    twin: bool = False,
) -> nn.Module:
    """Build copies of some of the following units and the classifier; it makes logits as the model does.

    Args:
        feature_shape: shape of one row of the stage's output.
        output_shape: shape of one row of the output.
        downstream: what follows the cut. If several tensors cross it, the head takes them all.
        depth: how many units, or ``"all"``; see :func:`~pipelocal.heads.rows.choose_row`.
        rule: ``"even"`` or ``"next"``.
        square: pixels of a side of the squares over which a map ``[C, H, W]`` is averaged before the first
            unit; those at a border are of what there is. None to leave maps as they are.
        twin: whether they start with the real units' weights, instead of weights of their own.

    Raises:
        UserError: depth, rule or square is unknown, the classifier alone does not take what crosses the
            cut, or there is a square where a map must stay whole.
    """
    what = "head 'twin'" if twin else "head 'downstream'"
    check_row(depth, rule, square, what=what)
    if square is not None:
        _check_coarse(square, feature_shape, output_shape, downstream, what)
    row = choose_row(downstream.kinds, depth, rule)
    if row is None:
        made, wanted = (list(downstream.crossing[at][0].shape) for at in (0, -1))
        raise UserError(
            f"{what} of depth 0 is the classifier alone, which takes {wanted}, but this stage "
            f"makes {made}: give a greater depth, or none"
        )
    units = [*(downstream.units[place] for place in row), downstream.classifier]
    # Module names must not contain dots.
    parts = [
        (unit.name.replace(".", "/"), build_unit(unit, downstream.seed) if twin else unit.make())
        for unit in units
    ]
    if square is not None and len(feature_shape) == 3:
        # Not of a vector [C], which has but one place.
        parts.insert(0, ("/coarse", nn.AvgPool2d(square, ceil_mode=True)))
    head = nn.Sequential(OrderedDict(parts))
    if len(downstream.crossing[0]) > 1:
        head.takes_beside = True  # type: ignore[assignment]
    return head


def _check_coarse(
    square: int, feature_shape: Shape, output_shape: Shape, downstream: Downstream, what: str
) -> None:
    """Refuse to average what is no map, or one that the output or another tensor wants whole."""
    why = ""
    if len(feature_shape) == 2:
        why = f"this stage makes {list(feature_shape)}, which is no map"
    elif len(output_shape) == 3:
        why = "the task wants an answer for every pixel"
    elif len(downstream.crossing[0]) > 1:
        names = ", ".join(kind.name for kind in downstream.crossing[0][1:])
        why = f"beside the map the cut passes on {names}"
    if why:
        raise UserError(f"{what}: square {square}, but {why}: leave @{square} out")
