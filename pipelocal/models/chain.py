"""A model as a chain of named units: the only form in which it can be cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models.copying import HOOKS, check_containers, check_copyable, copy_of
from pipelocal.models.inputs import Inputs, call, crossing_text, first_argument, kinds_of, logits_of
from pipelocal.models.operations import multiply_adds
from pipelocal.models.payload import Payload, tensors_of
from pipelocal.models.shared import check_nothing_shared, untied
from pipelocal.models.state import Versions, versions_of, with_versions
from pipelocal.models.traced import copy_of_piece, split_module
from pipelocal.models.trial import check_has_values, check_not_lazy, try_units
from pipelocal.models.unit import Shape, Unit, assemble, build_unit, module_name, named_sequence
from pipelocal.models.unsaved import set_unsaved
from pipelocal.system.names import unwritable
from pipelocal.system.tensor_kind import TensorKind


class Chain:
    """A network ``unit_1, ..., unit_n, classifier``, each of which feeds the next.

    A unit takes and returns a tensor, or a tuple ``(main, *beside)`` of several.

    The classifier is the model's own last part. It is never cut off: it serves as the head of the
    last stage, so that the bodies of all stages and this head make up the whole model.

    Args:
        units: the units in order; at least one.
        classifier: maps what the last unit passes on to logits.
        input_shape: shape of one sample, without the batch dimension, if the model takes one tensor.
        classes: width of the logits, if given; otherwise :meth:`tried` finds it.
        input_dtype: dtype of the samples.
        inputs: what the model takes, instead of ``input_shape``, if it is several tensors.
        whole: builds the uncut model as its author wrote it, if that is not simply the sequence of
            units; its state dict has the same names.
        versions: versions of the uncut model's modules, as in its state dict; None for the units' own.
        given: the module whose weights the units start from; None if each draws its own.
        notes: what was done to the model to make a chain of it, in a line each.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        classifier: Unit,
        input_shape: Shape | None = None,
        classes: int | None = None,
        input_dtype: torch.dtype = torch.float32,
        inputs: Inputs | None = None,
        whole: Callable[[], nn.Module] | None = None,
        versions: Versions | None = None,
        given: nn.Module | None = None,
        notes: Sequence[str] = (),
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
        self.inputs = kinds_of(inputs, input_shape, input_dtype)
        self.classes = classes
        self.output_shape: Shape | None = None
        """Shape of one row of the classifier's output, once :meth:`tried` has found it."""
        self.crossing: tuple[tuple[TensorKind, ...], ...] = ()
        """Kinds of the tensors that each unit passes on, main first, once :meth:`tried` has found them."""
        self._multiply_adds: tuple[int, ...] | None = None
        self._whole = whole
        self._versions = versions
        self.given = given
        self.notes = tuple(notes)
        self.copies: Mapping[str, str] = {}
        """Names of parameters that were tied to others and now start as copies of them, with those names."""

    @property
    def input_shape(self) -> Shape:
        """Shape of one sample, without the batch dimension; of several inputs, the first."""
        return self.inputs[0].shape

    @property
    def input_dtype(self) -> torch.dtype:
        """Dtype of the samples; of several inputs, the first. It may be set before the chain is tried."""
        return self.inputs[0].dtype

    @input_dtype.setter
    def input_dtype(self, dtype: torch.dtype) -> None:
        self.inputs = (replace(self.inputs[0], dtype=dtype), *self.inputs[1:])

    @classmethod
    def from_sequential(
        cls,
        model: nn.Sequential,
        *,
        input_shape: Shape | None = None,
        classes: int | None = None,
        input_dtype: torch.dtype = torch.float32,
        inputs: Inputs | None = None,
    ) -> Chain:
        """Make a chain of any ``nn.Sequential``: each child is a unit, the last one the classifier.

        Parameters keep their values from ``model``; state-dict names are the model's own. Children may pass
        on tuples of tensors; if the model takes one, ``inputs`` says of what.

        Raises:
            UserError: the model does more than call its children in sequence, has fewer than two,
                or shares a parameter between two of them, which two stages cannot do.
        """
        if type(model).forward is not nn.Sequential.forward:
            raise UserError(
                f"{type(model).__name__} has a forward of its own, which would be lost where the "
                f"model is cut: return a plain nn.Sequential, or Chain.from_module(...)"
            )
        if any(getattr(model, hooks, None) for hooks in HOOKS):
            raise UserError(
                "model: hooks on the nn.Sequential itself would be lost where it is cut: register them on "
                "its children"
            )
        # named_children() would omit repeated occurrences of a module, such as a shared nn.ReLU.
        children = [
            (name, module)
            for name, module in model.named_modules(remove_duplicate=False)
            if name and "." not in name
        ]
        for name, child in children:
            check_not_lazy(f"unit '{name}'", child)
            check_has_values(f"unit '{name}'", child)
            check_copyable(f"unit '{name}'", child)
        check_nothing_shared(children)
        if len(children) < 2:
            raise UserError(
                f"a sequential model needs at least two children (a unit and the classifier), "
                f"this one has {len(children)}"
            )
        # Each build returns a copy, so that stages trained from one model never share parameters.
        units = [Unit(name=name, build=partial(copy_of, child)) for name, child in children]
        return cls(
            units[:-1],
            classifier=units[-1],
            classes=classes,
            inputs=kinds_of(inputs, input_shape, input_dtype),
            versions=versions_of(model.state_dict()),
            given=model,
        )

    @classmethod
    def from_module(
        cls,
        model: nn.Module,
        *,
        units: Sequence[str],
        input_shape: Shape | None = None,
        classes: int | None = None,
        input_dtype: torch.dtype = torch.float32,
        inputs: Inputs | None = None,
        untie: bool = False,
    ) -> Chain:
        """Make a chain of any module whose forward calls some submodules, with code between.

        Code between two of them becomes part of the second, code after the last part of the last. It is
        traced with ``torch.fx``; the submodules themselves are not, nor modules that contain none of
        them. Tensors that later units use as well, such as skips and masks, are passed on from unit to unit.
        Parameters keep their values and state-dict names from ``model``.

        Args:
            model: returns logits, or a dict with ``"logits"``; arguments that are not given must have
                defaults.
            units: names of submodules, such as ``layer1.0``, in the order in which they are called;
                the last one is the classifier.
            input_shape: shape of one sample, without the batch dimension, if the model takes one tensor.
            classes: width of the logits, if it should be checked.
            input_dtype: dtype of the samples.
            inputs: what the model takes, instead of ``input_shape``, if it is several tensors: a batch of any
                rows by the names of its arguments, such as a tokenizer makes, or a TensorKind for each.
            untie: whether a parameter that two units share is copied at the start, to be trained by each
                on its own, instead of refused.

        Raises:
            UserError: the model cannot be cut so (names what crosses a cut and cannot), its code between the
                units cannot be traced or would then behave differently, or two of them share a parameter.
        """
        if not isinstance(model, nn.Module):
            raise UserError(f"Chain.from_module takes an nn.Module, not a {type(model).__name__}")
        check_not_lazy(type(model).__name__, model)
        check_has_values(type(model).__name__, model)
        check_copyable(type(model).__name__, model)
        check_containers(model, units)
        kinds = kinds_of(inputs, input_shape, input_dtype, name=first_argument(model))
        pieces = split_module(model, units, kinds)
        notes: list[str] = []
        copies: dict[str, str] = {}
        if untie:
            model, notes, copies = untied(model, pieces)
            pieces = split_module(model, units, kinds) if notes else pieces
        saved = model.state_dict()
        check_nothing_shared([(piece.name, piece.module) for piece in pieces], pieces[0].state)
        *links, classifier = (
            Unit(
                name=piece.name,
                build=partial(copy_of_piece, piece.module, list(saved)),
                prefix="",
                passes=piece.passes,
            )
            for piece in pieces
        )
        chain = cls(
            links,
            classifier=classifier,
            classes=classes,
            inputs=kinds,
            whole=partial(copy_of, model),
            versions=versions_of(saved),
            given=model,
            notes=notes,
        )
        chain.copies = copies
        return chain

    def build(self, start: int, stop: int, *, seed: int) -> nn.Sequential:
        """Build the units ``start..stop-1`` as one module.

        Each unit is drawn from its own seed, so its initial parameters do not depend on where the
        model is cut.
        """
        return assemble(self.units[start:stop], seed)

    def build_classifier(self, *, seed: int) -> nn.Module:
        """Build the classifier alone, drawn from its own seed.

        If it takes a tuple of several tensors, its attribute ``takes_beside`` is true.
        """
        module = build_unit(self.classifier, seed)
        if self.crossing and len(self.crossing[-1]) > 1 and not hasattr(module, "takes_beside"):
            module.takes_beside = True  # type: ignore[assignment]
        return module

    def build_whole(self, *, seed: int) -> nn.Module:
        """Build the uncut model, as a plain module that includes the classifier."""
        pieces = (*self.units, self.classifier)
        built = assemble(pieces, seed)
        if self._whole is None:
            return built
        whole = self._whole()
        whole.load_state_dict(self.whole_state(built, 0, len(pieces)))
        return whole

    def whole_with(
        self, state: Mapping[str, Tensor], unsaved: Mapping[str, Tensor] | None = None
    ) -> nn.Module:
        """Build the uncut model with the weights of its plain state dict.

        Args:
            state: the state dict.
            unsaved: values of buffers that it does not hold, by their names in :meth:`build`'s modules.
        """
        pieces = (*self.units, self.classifier)
        if self._whole is not None:
            whole = self._whole()
            whole.load_state_dict(state)
        else:
            whole = assemble(pieces, 0)
            self.load_whole_state(whole, 0, len(pieces), state)
        units = {module_name(unit): unit for unit in pieces}
        for name, value in (unsaved or {}).items():
            unit, _, own = name.partition(".")
            set_unsaved(whole, {name: value, units[unit].whole_name(own): value})
        return whole

    def logits(self, whole: nn.Module, x: Payload) -> Tensor:
        """Call the uncut model as its author does, and return its logits.

        Args:
            whole: made by :meth:`build_whole` or :meth:`whole_with`.
            x: all of its inputs.

        Raises:
            UserError: it returns something else.
        """
        names = [kind.name for kind in self.inputs]
        made = whole(x) if self._whole is None else logits_of(call(whole, names, tensors_of(x)))
        if not isinstance(made, Tensor):
            raise UserError(f"the model returns {type(made).__name__} instead of logits")
        return made

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

        The returned chain knows which units change their input, what each passes on, and the shape of
        its output.

        Shapes are without the batch dimension.

        Raises:
            UserError: a unit does not accept the output of the unit before it; names the unit.
        """
        units, crossing = try_units((*self.units, self.classifier), self.inputs)
        (output,) = crossing.pop()
        _check_output(self.classifier.name, output.shape, self.classes)
        tried = copy.copy(self)
        *links, tried.classifier = units
        tried.units = tuple(links)
        tried.output_shape = output.shape
        tried.crossing = tuple(crossing)
        tried._multiply_adds = None
        return tried, [kinds[0].shape for kinds in crossing]

    def remade(self, units: Sequence[Unit], crossing: Sequence[tuple[TensorKind, ...]]) -> Chain:
        """Return the same with other units of the same names, and what each passes on; see :meth:`tried`.

        Its uncut model is the sequence of these units, not as its author wrote it; its state dict has the
        names of :meth:`whole_state`.
        """
        remade = copy.copy(self)
        remade.units, remade.crossing = tuple(units), tuple(crossing)
        remade._whole = partial(named_sequence, (*units, self.classifier))
        remade._multiply_adds = None
        return remade

    def multiply_adds(self) -> tuple[int, ...]:
        """Return the multiply-adds of one sample's forward pass through each unit, last the classifier's.

        They are counted once, by shapes, the same on every rank; the chain must have been :meth:`tried`.
        """
        if self._multiply_adds is None:
            parts = zip((*self.units, self.classifier), (self.inputs, *self.crossing), strict=True)
            self._multiply_adds = multiply_adds((unit.build, given) for unit, given in parts)
        return self._multiply_adds

    def describe(self, stops: Sequence[int] | None = None) -> list[str]:
        """Say what was done to the model, and what crosses a cut if it is several tensors, in a line each.

        Args:
            stops: numbers of units before each cut; None for behind every unit.
        """
        return [
            *self.notes,
            *(
                f"cut after {self.units[stop - 1].name}: "
                f"{crossing_text(self.crossing[stop - 1], self.inputs)}"
                for stop in (range(1, len(self.units) + 1) if stops is None else stops)
                if len(self.crossing[stop - 1]) > 1
            ),
        ]


def _check_output(name: str, shape: Shape, classes: int | None) -> None:
    if not shape:
        raise UserError(
            f"the classifier '{name}' makes one number a sample: it must make logits [..., classes]"
        )
    width = shape[0] if len(shape) > 2 else shape[-1]  # a class for each pixel: [C, H, W]
    if classes not in (None, width):
        which = "first" if len(shape) > 2 else "last"
        raise UserError(
            f"the classifier '{name}' makes outputs of shape {shape}, but the data has {classes} classes: "
            f"the {which} dimension must be {classes}"
        )
