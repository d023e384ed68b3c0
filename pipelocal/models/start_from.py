"""Starts a chain's units from a pretrained state dict: which of its tensors is which of the model's."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models.chain import Chain
from pipelocal.models.renaming import Renaming
from pipelocal.models.state import Versions, versions_of, with_versions
from pipelocal.models.unit import Shape, Unit

SHOWN = 3
"""Names of each kind that an error lists."""
COUNTED = "num_batches_tracked"
"""A buffer of BatchNorm that old files lack, as torch allows; it then starts at zero."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Which tensor of a state dict goes where in a model."""

    source: Mapping[str, str]
    """Name in the state dict, by the name in the whole model."""
    left_new: Mapping[str, str]
    """The classifier's tensors that start as they are, and why, by name in the whole model."""
    left_out: Sequence[str]
    """The state dict's tensors that belong to a classifier of its own, by their names there."""
    renaming: Renaming

    def describe(self) -> str:
        """Return what was found, in one line."""
        text = f"{len(self.source)} tensors{self.renaming.describe()}"
        if self.left_new:
            listed = ", ".join(f"{name} ({why})" for name, why in self.left_new.items())
            text += f"; of the classifier left new: {listed}"
        if self.left_out:
            text += f"; of the file's own classifier left out: {_listed(self.left_out)}"
        return text


def fit(chain: Chain, given: Mapping[str, Shape], what: str) -> Fit:
    """Match the tensors of a state dict to those of a model, by name and shape.

    A prefix on one side only is found. The classifier may be for another number of classes, or missing; then
    its last layer is left new. In the latter case the file may have another one, under names that lie beside
    the model's.

    Args:
        chain: the model; a chain returned by :meth:`Chain.tried`.
        given: shapes of the state dict's tensors, by name.
        what: names the state dict in an error.

    Raises:
        UserError: a tensor is missing, is not the model's, or has another shape; lists the first ones.
    """
    last = _shapes([chain.classifier])
    wanted = {**_shapes(chain.units), **last}
    renaming = Renaming.between(given, wanted)
    own = {name: renaming.own(name, wanted) for name in given}
    found = {mine: theirs for theirs, mine in own.items() if mine in wanted}
    found |= {n: found[same] for n, same in _tied(chain) if n not in found and same in found}
    left_new = {
        name: f"{_text(given[found[name]])} there, {_text(shape)} here"
        for name, shape in _last_layer(last).items()
        if name in found and _differs_in_classes(given[found[name]], shape)
    }
    absent = {n for n in wanted if n not in found and not n.endswith(COUNTED)}
    replaced = _replaceable(chain.classifier, last, absent)
    left_new |= dict.fromkeys(replaced, "not in the file")
    source = {n: found[n] for n in wanted if n in found and n not in left_new}
    missing = [name for name in wanted if name in absent - left_new.keys()]
    other = [
        f"{name} ({_text(given[theirs])} there, {_text(wanted[name])} here)"
        for name, theirs in source.items()
        if given[theirs] != wanted[name]
    ]
    constants = _constants(chain)
    unexpected = [n for n, mine in own.items() if mine not in wanted and mine not in constants]
    left_out = unexpected if replaced and _beside(unexpected, wanted, renaming) else []
    unexpected = [] if left_out else unexpected
    if missing or unexpected or other:
        kinds = {"missing": missing, "unexpected": unexpected, "of another shape": other}
        listed = "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names)
        mend = _mend(len(source) - len(other), len(wanted), missing, unexpected)
        raise UserError(f"{what} does not fit the model: {listed}: {mend}")
    return Fit(source=source, left_new=left_new, left_out=left_out, renaming=renaming)


def starting_from(
    chain: Chain, fitted: Fit, read: Callable[[str], Tensor], versions: Versions
) -> Chain:
    """Return the chain with units that start from pretrained tensors, which are read when a unit is built.

    Args:
        chain: the model.
        fitted: which tensor goes where.
        read: reads a tensor of the state dict.
        versions: versions of the state dict's modules, by their names there; empty if not known.
    """
    by_model = versions if fitted.renaming == Renaming() else {}

    def of(unit: Unit) -> Unit:
        return replace(unit, begin_with=partial(_load, unit, fitted.source, read, by_model))

    started = copy.copy(chain)
    started.units = tuple(of(unit) for unit in chain.units)
    started.classifier = of(chain.classifier)
    return started


def _load(
    unit: Unit,
    source: Mapping[str, str],
    read: Callable[[str], Tensor],
    versions: Versions,
    module: nn.Module,
) -> None:
    """Load a new unit's tensors; those that are left new keep their values."""
    now = module.state_dict()
    own = {name: read(source[w]) for name in now if (w := unit.whole_name(name)) in source}
    known = {
        path: versions.get(unit.whole_name(path).removesuffix("."), kept)
        for path, kept in versions_of(now).items()
    }
    try:
        module.load_state_dict(with_versions(own, known), strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"unit '{unit.name}' cannot start from --init: {reason}") from error


def _shapes(units: Iterable[Unit]) -> dict[str, Shape]:
    """Return the shape of every tensor of units, by the whole model's names."""
    found: dict[str, Shape] = {}
    for unit in units:
        assert unit.layout is not None, "the chain was not tried"
        found |= {unit.whole_name(name): tuple(shape) for name, shape, _ in unit.layout}
    return found


def _tied(chain: Chain) -> Iterator[tuple[str, str]]:
    """Yield pairs of names of one tensor, or of a tensor and a copy of it; files may hold it once."""
    yield from chain.copies.items()
    if chain.given is None:
        return
    names: dict[int, list[str]] = {}
    for name, tensor in chain.given.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    for same in names.values():
        yield from itertools.permutations(same, 2)


def _constants(chain: Chain) -> set[str]:
    """Return the names of buffers that are not saved with the model, but once were with some."""
    if chain.given is None:
        return set()
    return {name for name, _ in chain.given.named_buffers()}


def _beside(names: Iterable[str], wanted: Iterable[str], renaming: Renaming) -> bool:
    """Return whether names of a state dict lie in none of the modules that the model has at its top."""
    tops = {name.removeprefix(renaming.on).partition(".")[0] for name in wanted}
    return all(name.removeprefix(renaming.off).partition(".")[0] not in tops for name in names)


def _differs_in_classes(theirs: Shape, own: Shape) -> bool:
    return len(theirs) == len(own) >= 1 and theirs[0] != own[0] and theirs[1:] == own[1:]


def _replaceable(classifier: Unit, last: Mapping[str, Shape], absent: set[str]) -> list[str]:
    """Return the missing tensors of the classifier that a file without it may lack.

    These are those of its last layer, or of all of the submodule that the user named as the last unit.
    """
    named = [name for name in last if name.startswith(f"{classifier.name}.")]
    if named and absent.issuperset(named):
        return named
    names = list(_last_layer(last))
    return names if absent.issuperset(names) else []


def _last_layer(classifier: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the tensors of the last module of the classifier that has any, which makes the logits."""
    owner = next(reversed(list(classifier)), "").rpartition(".")[0]
    return {n: shape for n, shape in classifier.items() if n.rpartition(".")[0] == owner}


def _mend(fitting: int, wanted: int, missing: list[str], unexpected: list[str]) -> str:
    if 2 * fitting < wanted:
        return "give the --model that these weights are of, or weights of this one"
    if missing:
        return "give a file that has them, or a model without them"
    if unexpected:
        return "save the state dict without them, or give a model that has them"
    return "give the model and the data the sizes that these weights were made for"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _text(shape: Shape) -> str:
    return str(list(shape))
