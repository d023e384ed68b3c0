"""A model as a chain of named units: the only form in which it can be cut."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models.in_place import give_own_input
from pipelocal.models.state import Versions, versions_of, with_versions
from pipelocal.models.traced import copy_of_piece, split_module
from pipelocal.models.trial import Layout, check_not_lazy, try_unit
from pipelocal.seeding import seeded
from pipelocal.system.names import unwritable

Shape = tuple[int, ...]
"""A shape without its batch dimension."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One link of the chain: the smallest piece that a stage can hold.

    A unit is only a recipe, so that a rank builds no units but those of its own stages.
    """

    name: str
    """Name of the unit for users, such as ``layer1.0``."""
    build: Callable[[], nn.Module]
    """Builds the module, drawing its initial parameters from torch's generator."""
    prefix: str | None = None
    """Prefix of the unit's own names in the whole model's state dict; None for
    ``"NAME."``. With ``""`` a unit can hold several parts of the model's top level."""
    in_place: bool = False
    """Whether the unit is known to change its input; see :meth:`Chain.tried`."""
    layout: Layout | None = None
    """Contents of its state dict, if known; see :meth:`Chain.tried`."""
    begin_with: Callable[[nn.Module], None] | None = None
    """Gives the built module its first weights; None to keep those that it is built with."""

    def make(self) -> nn.Module:
        """Build the module with its first weights, so that it leaves its input unchanged."""
        module = self.build()
        if self.begin_with is not None:
            self.begin_with(module)
        if self.in_place:
            give_own_input(module)
        return module

    def whole_name(self, own_name: str) -> str:
        """Return the name in the whole model's state dict of the unit's parameter ``own_name``."""
        return (f"{self.name}." if self.prefix is None else self.prefix) + own_name

    def whole_versions(self, own: Versions) -> Versions:
        """Return the versions of the unit's modules, by their paths in the whole model.

        The unit itself is left out if it is not a module of the model.
        """
        named = {self.whole_name(path).removesuffix("."): kept for path, kept in own.items()}
        return {path: kept for path, kept in named.items() if path}


class Chain:
    """A network ``unit_1, ..., unit_n, classifier``, each of which feeds the next.

    The classifier is the model's own last part. It is never cut off: it serves as the head of the
    last stage, so that the bodies of all stages and this head make up the whole model.

    Args:
        units: the units in order; at least one.
        classifier: maps the last unit's output to logits.
        input_shape: shape of one sample, without the batch dimension.
        classes: width of the logits, if given; otherwise :meth:`tried` finds it.
        input_dtype: dtype of the samples.
        whole: builds the uncut model as its author wrote it, if that is not simply the sequence of
            units; its state dict has the same names.
        versions: versions of the uncut model's modules, as in its state dict; None for the units' own.
        given: the module whose weights the units start from; None if each draws its own.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        classifier: Unit,
        input_shape: Shape,
        classes: int | None = None,
        input_dtype: torch.dtype = torch.float32,
        whole: Callable[[], nn.Module] | None = None,
        versions: Versions | None = None,
        given: nn.Module | None = None,
    ) -> None:
        if not units:
            raise UserError("the model has no units before its classifier: nothing can be cut")
        names = [unit.name for unit in (*units, classifier)]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise UserError(f"unit names must differ, but {sorted(doubled)} occur more than once")
        for name in names:
            if unwritable(name) is not None:
                raise UserError(
                    f"unit name {name!a}: give one without line breaks and control characters"
                )
        self.units = tuple(units)
        self.classifier = classifier
        self.input_shape = input_shape
        self.input_dtype = input_dtype
        self.classes = classes
        self._whole = whole
        self._versions = versions
        self.given = given

    @classmethod
    def from_sequential(
        cls,
        model: nn.Sequential,
        *,
        input_shape: Shape,
        classes: int | None = None,
        input_dtype: torch.dtype = torch.float32,
    ) -> Chain:
        """Make a chain of any ``nn.Sequential``: each child is a unit, the last one the classifier.

        Parameters keep their values from ``model``; state-dict names are the model's own.

        Raises:
            UserError: the model does more than call its children in sequence, has fewer than two,
                or shares a parameter between two of them, which two stages cannot do.
        """
        if type(model).forward is not nn.Sequential.forward:
            raise UserError(
                f"{type(model).__name__} has a forward of its own, which would be lost where the "
                f"model is cut: return a plain nn.Sequential, or Chain.from_module(...)"
            )
        # named_children() would omit repeated occurrences of a module, such as a shared nn.ReLU.
        children = [
            (name, module)
            for name, module in model.named_modules(remove_duplicate=False)
            if name and "." not in name
        ]
        for name, child in children:
            check_not_lazy(f"unit '{name}'", child)
        _check_nothing_shared(children)
        if len(children) < 2:
            raise UserError(
                f"a sequential model needs at least two children (a unit and the classifier), "
                f"this one has {len(children)}"
            )
        # Each build returns a copy, so that stages trained from one model never share parameters.
        units = [Unit(name=name, build=partial(copy.deepcopy, child)) for name, child in children]
        return cls(
            units[:-1],
            classifier=units[-1],
            input_shape=input_shape,
            classes=classes,
            input_dtype=input_dtype,
            versions=versions_of(model.state_dict()),
            given=model,
        )

    @classmethod
    def from_module(
        cls,
        model: nn.Module,
        *,
        units: Sequence[str],
        input_shape: Shape,
        classes: int | None = None,
        input_dtype: torch.dtype = torch.float32,
    ) -> Chain:
        """Make a chain of any module whose forward calls some submodules in sequence, with code between.

        Code between two of them becomes part of the second, code after the last part of the last. It is
        traced with ``torch.fx``; the submodules themselves are not, nor modules that contain none of
        them. Parameters keep their values and state-dict names from ``model``.

        Args:
            model: takes one tensor and returns logits; further arguments must have defaults.
            units: names of submodules, such as ``layer1.0``, in the order in which they are called;
                the last one is the classifier.
            input_shape: shape of one sample, without the batch dimension.
            classes: width of the logits, if it should be checked.
            input_dtype: dtype of the samples.

        Raises:
            UserError: the model is not a chain of these (names the tensors that cross a cut), its code
                between them cannot be traced or would then behave differently, or two of them share
                a parameter.
        """
        if isinstance(model, nn.Module):
            check_not_lazy(type(model).__name__, model)
        pieces = list(zip(units, split_module(model, units), strict=True))
        _check_nothing_shared(pieces)
        saved = model.state_dict()
        *links, classifier = (
            Unit(name=name, build=partial(copy_of_piece, piece, list(saved)), prefix="")
            for name, piece in pieces
        )
        return cls(
            links,
            classifier=classifier,
            input_shape=input_shape,
            classes=classes,
            input_dtype=input_dtype,
            whole=partial(copy.deepcopy, model),
            versions=versions_of(saved),
            given=model,
        )

    def build(self, start: int, stop: int, *, seed: int) -> nn.Sequential:
        """Build the units ``start..stop-1`` as one module.

        Each unit is drawn from its own seed, so its initial parameters do not depend on where the
        model is cut.
        """
        return _assemble(self.units[start:stop], seed)

    def build_classifier(self, *, seed: int) -> nn.Module:
        """Build the classifier alone, drawn from its own seed."""
        return build_unit(self.classifier, seed)

    def build_whole(self, *, seed: int) -> nn.Module:
        """Build the uncut model, as a plain module that includes the classifier."""
        pieces = (*self.units, self.classifier)
        built = _assemble(pieces, seed)
        if self._whole is None:
            return built
        whole = self._whole()
        whole.load_state_dict(self.whole_state(built, 0, len(pieces)))
        return whole

    def whole_with(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Build the uncut model with the weights of its plain state dict."""
        if self._whole is not None:
            whole = self._whole()
            whole.load_state_dict(state)
            return whole
        pieces = (*self.units, self.classifier)
        built = _assemble(pieces, 0)
        self.load_whole_state(built, 0, len(pieces), state)
        return built

    def whole_state(self, body: nn.Sequential, start: int, stop: int) -> dict[str, Tensor]:
        """Return the state dict of units ``start..stop-1``, by the whole model's names, with versions.

        The classifier counts as the unit after the last.
        """
        units = (*self.units, self.classifier)[start:stop]
        values: dict[str, Tensor] = {}
        versions: Versions = {}
        for unit, module in zip(units, body, strict=True):
            own = module.state_dict()
            values |= {unit.whole_name(name): value for name, value in own.items()}
            versions |= unit.whole_versions(versions_of(own))
        return with_versions(values, versions | (self._versions or {}))

    def joined_state(self, bodies: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Merge the state dicts of all parts, by the whole model's names, into the whole model's."""
        values: dict[str, Tensor] = {}
        versions = dict(self._versions or {})
        for state in bodies:
            values |= state
            versions |= versions_of(state)
        return with_versions(values, versions)

    def whole_names(self, body: nn.Sequential, start: int, stop: int) -> list[str]:
        """Return the whole model's names of the body's trained parameters, in order."""
        units = (*self.units, self.classifier)[start:stop]
        return [
            unit.whole_name(name)
            for unit, module in zip(units, body, strict=True)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]

    def load_whole_state(
        self, body: nn.Sequential, start: int, stop: int, state: Mapping[str, Tensor]
    ) -> None:
        """Load a body from :meth:`whole_state`; names of other units in ``state`` are ignored.

        Raises:
            UserError: a tensor is missing or has another shape; names the unit.
        """
        units = (*self.units, self.classifier)[start:stop]
        saved = versions_of(state)
        for unit, module in zip(units, body, strict=True):
            now = module.state_dict()
            own = {n: state[w] for n in now if (w := unit.whole_name(n)) in state}
            versions = {
                path: saved.get(unit.whole_name(path).removesuffix("."), kept)
                for path, kept in versions_of(now).items()
            }
            try:
                module.load_state_dict(with_versions(own, versions))
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise UserError(f"unit '{unit.name}' cannot be loaded: {reason}") from error

    def shapes(self) -> list[Shape]:
        """Return the output shape of each unit, without the batch dimension; see :meth:`tried`."""
        return self.tried()[1]

    def tried(self) -> tuple[Chain, list[Shape]]:
        """Run every unit without memory; return the chain with what that showed, and all output shapes.

        The returned chain knows which units change their input, and how wide its logits are.

        Shapes are without the batch dimension.

        Raises:
            UserError: a unit does not accept the output of the unit before it; names the unit.
        """
        sample = torch.empty((2, *self.input_shape), dtype=self.input_dtype, device="meta")
        shapes: list[Shape] = []
        units: list[Unit] = []
        for unit in (*self.units, self.classifier):
            sample, in_place, layout = try_unit(unit.name, unit.build, sample)
            units.append(replace(unit, in_place=in_place, layout=layout))
            shapes.append(tuple(sample.shape[1:]))
        logits = shapes.pop()
        if not logits:
            raise UserError(
                f"the classifier '{self.classifier.name}' makes one number a sample: it must make logits "
                f"[..., classes]"
            )
        if logits[-1:] != (self.classes or logits[-1],):
            raise UserError(
                f"the classifier '{self.classifier.name}' makes outputs of shape {logits}, but the "
                f"data has {self.classes} classes: the last dimension must be {self.classes}"
            )
        tried = copy.copy(self)
        *links, tried.classifier = units
        tried.units = tuple(links)
        tried.classes = logits[-1]
        return tried, shapes


def _check_nothing_shared(children: Sequence[tuple[str, nn.Module]]) -> None:
    owners: dict[int, str] = {}
    for name, module in children:
        for tensor in (*module.parameters(), *module.buffers()):
            owner = owners.setdefault(id(tensor), name)
            if owner != name:
                raise UserError(
                    f"units '{owner}' and '{name}' share a parameter or buffer, which stages "
                    f"cannot: put both into one unit, or give each its own"
                )


def build_unit(unit: Unit, seed: int) -> nn.Module:
    """Build one unit alone, drawn from its own seed."""
    with seeded(seed, "unit", unit.name):
        return unit.make()


def _assemble(units: Sequence[Unit], seed: int) -> nn.Sequential:
    # Module names must not contain dots; whole_name gives the whole model's own names.
    return nn.Sequential(
        OrderedDict((unit.name.replace(".", "/"), build_unit(unit, seed)) for unit in units)
    )
