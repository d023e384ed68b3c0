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

    Only a recipe, so that a rank builds the units of its own stages and no others.
    """

    name: str
    """How users call it, such as ``layer1.0``."""
    build: Callable[[], nn.Module]
    """Makes the module, drawing its first parameters from torch's generator."""
    prefix: str | None = None
    """What stands before the unit's own names in the whole model's state dict; None for
    ``"NAME."``. With ``""`` a unit can hold several parts of the model's top level."""
    in_place: bool = False
    """Whether it is known to change its input; see :meth:`Chain.tried`."""
    layout: Layout | None = None
    """What its state dict holds, where it is known; see :meth:`Chain.tried`."""

    def make(self) -> nn.Module:
        """The module, such that it leaves its input as it is."""
        module = self.build()
        if self.in_place:
            give_own_input(module)
        return module

    def whole_name(self, own_name: str) -> str:
        """The name in the whole model's state dict of the unit's own parameter ``own_name``."""
        return (f"{self.name}." if self.prefix is None else self.prefix) + own_name

    def whole_versions(self, own: Versions) -> Versions:
        """The versions of the unit's modules, by their paths in the whole model.

        Without that of the unit itself where it is no module of the model.
        """
        named = {self.whole_name(path).removesuffix("."): kept for path, kept in own.items()}
        return {path: kept for path, kept in named.items() if path}


class Chain:
    """A network ``unit_1, ..., unit_n, classifier``, each fed by the one before.

    The classifier is the model's own last piece. It is never cut off: it serves as the head of
    the last stage, so that the bodies of all stages and this one head are the whole model.

    Args:
        units: the links in order; at least one.
        classifier: makes logits from the last unit's output.
        input_shape: shape of one sample, without the batch dimension.
        classes: width of the logits, where the author says it; :meth:`tried` finds it otherwise.
        input_dtype: dtype of the samples.
        whole: makes the uncut model as its author wrote it, where that is not simply the units in a
            row; its state dict has the same names.
        versions: of the uncut model's modules, as its state dict notes them; None for those of the units'.
        given: the module with whose weights the units begin; None where each draws its own.
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
        """Any ``nn.Sequential``: each child is a unit, the last one the classifier.

        Parameters keep the values that they have in ``model``; state dict names are the model's own.

        Raises:
            UserError: the model does more than to call its children in a row, has fewer than two,
                or has a parameter in two of them, which two stages cannot share.
        """
        if type(model).forward is not nn.Sequential.forward:
            raise UserError(
                f"{type(model).__name__} has a forward of its own, which would be lost where the "
                f"model is cut: return a plain nn.Sequential, or Chain.from_module(...)"
            )
        # named_children() would leave out a module that occurs a second time, such as one nn.ReLU.
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
        # Each build gives a copy, so that stages trained from one model never share parameters.
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
        """Any module whose forward calls some submodules in a row, with whatever lies between them.

        Code between two of them goes with the second, code behind the last one with that. It is
        traced with ``torch.fx``; the submodules themselves are not, nor any that holds none of them.
        Parameters keep the values and state-dict names that they have in ``model``.

        Args:
            model: takes one tensor, further arguments having defaults, and returns logits.
            units: names of submodules, such as ``layer1.0``, in the order in which they are called;
                the last one is the classifier.
            input_shape: shape of one sample, without the batch dimension.
            classes: width of the logits, if it is to be checked.
            input_dtype: dtype of the samples.

        Raises:
            UserError: the model is no chain of these (names the tensors that cross a cut), its code
                between them cannot be traced or would then do something else, or two of them share a
                parameter.
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
        """The units ``start..stop-1`` as one module.

        Each unit is drawn from its own seed, so its first parameters are the same wherever the
        model is cut.
        """
        return _assemble(self.units[start:stop], seed)

    def build_classifier(self, *, seed: int) -> nn.Module:
        """The classifier alone, drawn from its own seed."""
        return build_unit(self.classifier, seed)

    def build_whole(self, *, seed: int) -> nn.Module:
        """The uncut model, as a plain module with the classifier in its place."""
        pieces = (*self.units, self.classifier)
        built = _assemble(pieces, seed)
        if self._whole is None:
            return built
        whole = self._whole()
        whole.load_state_dict(self.whole_state(built, 0, len(pieces)))
        return whole

    def whole_with(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The uncut model with the weights of its plain state dict."""
        if self._whole is not None:
            whole = self._whole()
            whole.load_state_dict(state)
            return whole
        pieces = (*self.units, self.classifier)
        built = _assemble(pieces, 0)
        self.load_whole_state(built, 0, len(pieces), state)
        return built

    def whole_state(self, body: nn.Sequential, start: int, stop: int) -> dict[str, Tensor]:
        """The state dict of the units ``start..stop-1``, by the whole model's names, with the versions.

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
        """The whole model's state dict from those of its parts, by the whole model's names."""
        values: dict[str, Tensor] = {}
        versions = dict(self._versions or {})
        for state in bodies:
            values |= state
            versions |= versions_of(state)
        return with_versions(values, versions)

    def whole_names(self, body: nn.Sequential, start: int, stop: int) -> list[str]:
        """The names of the body's trained parameters, in order, in the whole model."""
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
        """The inverse of :meth:`whole_state`; names of other units in ``state`` are passed over.

        Raises:
            UserError: a tensor is missing or of another shape; names the unit.
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
        """Output shape of each unit, without the batch dimension; see :meth:`tried`."""
        return self.tried()[1]

    def tried(self) -> tuple[Chain, list[Shape]]:
        """Run every unit without memory: what the chain is found to be, and each unit's output shape.

        The chain that is returned knows which units change their input, and how wide its logits are.

        Shapes are without the batch dimension.

        Raises:
            UserError: a unit cannot take what the unit before it makes; names the unit.
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
    """One unit alone, drawn from its own seed."""
    with seeded(seed, "unit", unit.name):
        return unit.make()


def _assemble(units: Sequence[Unit], seed: int) -> nn.Sequential:
    # A module's name must not hold dots; whole_name gives the whole model's own names.
    return nn.Sequential(
        OrderedDict((unit.name.replace(".", "/"), build_unit(unit, seed)) for unit in units)
    )
