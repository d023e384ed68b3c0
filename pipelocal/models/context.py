"""Context for stages: what lies before a stage's output is supplied to the next stage again.

After ContSup (arXiv 2312.07636). The input of a stage is ``h + sum of M(c)``: the output h of the stage
before, and for each context c an encoder M. A context is the model's input, or the input of an earlier stage
with what was added to it. It travels beside the main tensor::

    image > [stage 1] > h, image > [+ M(image) | stage 2] > h, image > [+ M(image) | stage 3] > h

The encoders are part of the first unit of their stage and trained by its loss: all that comes in is
detached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models.chain import Chain
from pipelocal.models.payload import Payload, pack, unpack
from pipelocal.models.unit import Unit
from pipelocal.system.tensor_kind import TensorKind, dtype_name

IMAGE = 1
"""The context that is the model's input; any other has the number of the stage whose input it is."""

HIDDEN = 12
"""Channels between the two convolutions of an image's encoder."""


@dataclass(frozen=True, kw_only=True)
class Supply:
    """What is supplied to each stage.

    Args:
        image: whether the model's input is, with an encoder of two convolutions.
        inputs: of how many stages before it the inputs are, with an encoder of one convolution each. With
            ``image`` that of the first stage, which is the image, is not among them.
        control: whether the encoders are given the stage's own input instead, so that nothing is supplied.
    """

    image: bool
    inputs: int
    control: bool = False

    def contexts(self, stage: int) -> list[int]:
        """Return the contexts of a stage, from the nearest to the image."""
        first = IMAGE + 1 if self.image else IMAGE
        nearest = list(range(stage - 1, max(first, stage - self.inputs) - 1, -1))
        return [*nearest, IMAGE] if self.image and stage > 1 else nearest

    def passed_on(self, stage: int, stages: int) -> list[int]:
        """Return the contexts that a stage passes on, in the order in which they travel."""
        later = range(stage + 1, 0 if self.control else stages + 1)
        return sorted({c for other in later for c in self.contexts(other) if c <= stage})


def supplied(chain: Chain, starts: Sequence[int], supply: Supply) -> Chain:
    """Return a cut model whose stages are supplied with context; the names of its units stay the same.

    Args:
        chain: a chain returned by :meth:`Chain.tried`.
        starts: index of the first unit of each stage.
        supply: what is supplied.

    Raises:
        UserError: a unit passes on several tensors, or what is supplied or added to is not ``[C, H, W]``.
    """
    stages, units, crossing = len(starts), list[Unit](), list[tuple[TensorKind, ...]]()
    if stages == 1:
        return chain
    inputs = [chain.inputs[0], *(chain.crossing[start - 1][0] for start in starts[1:])]
    _check(chain, inputs)
    kinds_of = dict(enumerate(inputs, start=1))
    for number in range(2, stages + 1):
        kinds_of[number] = replace(kinds_of[number], name=f"input of stage {number}")
    stops = [*starts[1:], len(chain.units)]
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True), start=1):
        comes, goes = supply.passed_on(number - 1, stages), supply.passed_on(number, stages)
        places = [*comes, number]
        first = _Make(
            unit=chain.units[start],
            encoders=_encoders(supply, number, kinds_of),
            sources={
                _name(c): None if supply.control else comes.index(c)
                for c in supply.contexts(number)
            },
            kept=tuple(places.index(c) for c in goes),
        )
        rest = tuple(range(len(goes)))
        makes = [first, *(_Make(unit=unit, kept=rest) for unit in chain.units[start + 1 : stop])]
        units += [make.as_unit() for make in makes]
        beside = tuple(kinds_of[c] for c in goes)
        crossing += [(kinds[0], *beside) for kinds in chain.crossing[start:stop]]
    return chain.remade(units, crossing)


class Supplied(nn.Module):
    """A unit that passes on contexts, behind the encoders of its stage if it is the first there.

    Args:
        unit: takes and returns one tensor.
        encoders: encode the contexts, by name.
        sources: place of each context beside the main tensor; None for the main tensor itself.
        kept: places of what is passed on, beside the main tensor; the supplied input is behind the last.
    """

    def __init__(
        self,
        unit: nn.Module,
        encoders: dict[str, nn.Module],
        sources: dict[str, int | None],
        kept: Sequence[int],
    ) -> None:
        super().__init__()
        self.unit = unit
        self.context = nn.ModuleDict(encoders)
        self.sources = sources
        self.kept = tuple(kept)

    def forward(self, inputs: Payload) -> Payload:
        """Map the main tensor ``[B, C, H, W]`` and the contexts beside it to the same, as passed on."""
        given, beside = unpack(inputs)
        x = given
        for name, encoder in self.context.items():
            source = self.sources[name]
            context = given if source is None else beside[source]
            x = x + encoder(context.to(x.dtype))  # never in place: x is a receive buffer
        out: Tensor = self.unit(x)
        known = (*beside, x)
        return pack(out, tuple(known[place] for place in self.kept))


def image_encoder(
    channels: int, feature_shape: Sequence[int], *, hidden: int = HIDDEN
) -> nn.Module:
    """Build the encoder of an image ``[B, channels, ...]``, which works at full size before it pools."""
    out, *size = feature_shape
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 3, padding=1),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, out, 3, padding=1),
        nn.BatchNorm2d(out),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(tuple(size)),
    )


def input_encoder(channels: int, feature_shape: Sequence[int]) -> nn.Module:
    """Build the encoder of an earlier stage's input ``[B, channels, ...]``."""
    out, *size = feature_shape
    return nn.Sequential(
        nn.Conv2d(channels, out, 1),
        nn.BatchNorm2d(out),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(tuple(size)),
    )


def control_width(image_channels: int, channels: int) -> int:
    """Return the hidden channels with which an encoder of features is no smaller than one of images.

    Args:
        image_channels: channels of the image.
        channels: channels of the features.
    """
    image = HIDDEN * (9 * image_channels + 9 * channels + 3)
    return math.ceil(image / (18 * channels + 3))


Encoder = Callable[[], nn.Module]


def _encoders(supply: Supply, stage: int, kinds_of: dict[int, TensorKind]) -> dict[str, Encoder]:
    """Return what builds the encoders of a stage, by name."""
    found: dict[str, Encoder] = {}
    own = kinds_of[stage]
    for context in supply.contexts(stage):
        channels = kinds_of[context].shape[0]
        given = own.shape[0] if supply.control else channels
        if supply.image and context == IMAGE:
            hidden = control_width(channels, given) if supply.control else HIDDEN
            build: Encoder = partial(image_encoder, given, own.shape, hidden=hidden)
        else:
            build = partial(input_encoder, given, own.shape)
        found[_name(context)] = partial(_in_dtype, build, own.dtype)
    return found


def _in_dtype(build: Encoder, dtype: torch.dtype) -> nn.Module:
    return build().to(dtype)


def _name(context: int) -> str:
    return "image" if context == IMAGE else f"input{context}"


def _check(chain: Chain, inputs: Sequence[TensorKind]) -> None:
    """Refuse a model whose stages have these inputs, if its context cannot be supplied by convolutions."""
    mend = "choose --objective greedy, or a convolutional network"
    makers = ["the data", *(f"unit '{unit.name}'" for unit in chain.units)]
    for maker, kinds in zip(makers, (chain.inputs, *chain.crossing), strict=True):
        if len(kinds) > 1:
            raise UserError(
                f"context is supplied to units that take and pass on one tensor, and {maker} passes on "
                f"{len(kinds)}: {mend} of such units"
            )
    for number, kind in enumerate(inputs, start=1):
        if len(kind.shape) != 3 or not kind.dtype.is_floating_point:
            raise UserError(
                f"context is supplied by convolutions, from images [C, H, W] to features [C, H, W], and the "
                f"input of stage {number} is {list(kind.shape)} {dtype_name(kind.dtype)}: {mend}"
            )


@dataclass(frozen=True, kw_only=True)
class _Make:
    """Builds a :class:`Supplied` unit."""

    unit: Unit
    encoders: dict[str, Encoder] | None = None
    sources: dict[str, int | None] | None = None
    kept: tuple[int, ...]

    def __call__(self) -> nn.Module:
        inner = self.unit.make()  # which draws first, so that its weights are those without context
        encoders = {name: build() for name, build in (self.encoders or {}).items()}
        return Supplied(inner, encoders, self.sources or {}, self.kept)

    def as_unit(self) -> Unit:
        """Return the unit in its new form; as it was, if it is given and passes on nothing further."""
        if not self.encoders and not self.kept:
            return self.unit
        assert self.unit.layout is not None, "the chain was not tried"
        taken = f"{self.unit.name}.context."
        if any(self.unit.whole_name(name).startswith(taken) for name, *_ in self.unit.layout):
            raise UserError(
                f"unit '{self.unit.name}' has a part called context, as the encoders of context are: give "
                f"it another name"
            )
        layout: list[tuple[str, tuple[int, ...], str]] = [
            (f"unit.{name}", shape, dtype) for name, shape, dtype in self.unit.layout
        ]
        with torch.device("meta"):
            for name, build in (self.encoders or {}).items():
                layout += [
                    (f"context.{name}.{key}", tuple(tensor.shape), str(tensor.dtype))
                    for key, tensor in build().state_dict().items()
                ]
        return _SuppliedUnit(name=self.unit.name, build=self, inner=self.unit, layout=tuple(layout))


@dataclass(frozen=True, kw_only=True)
class _SuppliedUnit(Unit):
    """A unit whose own names stay the model's, with ``NAME.context.`` before those of its encoders."""

    inner: Unit

    def whole_name(self, own_name: str) -> str:
        first, _, rest = own_name.partition(".")
        if first == "unit":
            return self.inner.whole_name(rest)
        return f"{self.name}.{own_name}" if own_name else ""
