"""Starts a chain's units from a pretrained state dict: which of its tensors is which of the model's."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models.chain import Chain, Shape, Unit
from pipelocal.models.state import Versions, versions_of, with_versions

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
    renamed: str
    """Says by how the names differ; empty if they do not."""

    def describe(self) -> str:
        """Return what was found, in one line."""
        text = f"{len(self.source)} tensors{self.renamed}"
        if self.left_new:
            listed = ", ".join(f"{name} ({why})" for name, why in self.left_new.items())
            text += f"; of the classifier left new: {listed}"
        return text


def fit(chain: Chain, given: Mapping[str, Shape], what: str) -> Fit:
    """Match the tensors of a state dict to those of a model, by name and shape.

    A prefix on one side only is found. The classifier may be for another number of classes, or
    missing; then its last layer is left new.

    Args:
        chain: the model; a chain returned by :meth:`Chain.tried`.
        given: shapes of the state dict's tensors, by name.
        what: names the state dict in an error.

    Raises:
        UserError: a tensor is missing, is not the model's, or has another shape; lists the first ones.
    """
    own = _shapes(chain.units)
    last = _shapes([chain.classifier])
    wanted = {**own, **last}
    prefix, added = _prefix(wanted, given)
    source = _renamed(wanted, given, prefix, added)
    left_new = {
        name: f"{_text(given[source[name]])} there, {_text(shape)} here"
        for name, shape in _last_layer(last).items()
        if name in source and _differs_in_classes(given[source[name]], shape)
    }
    absent = {n for n in wanted if n not in source and not n.endswith(COUNTED)}
    for name in _replaceable(chain.classifier, last, absent):
        left_new[name] = "not in the file"
    known = set(source.values())
    source = {name: theirs for name, theirs in source.items() if name not in left_new}
    missing = [name for name in wanted if name in absent - left_new.keys()]
    other = [
        f"{name} ({_text(given[theirs])} there, {_text(wanted[name])} here)"
        for name, theirs in source.items()
        if given[theirs] != wanted[name]
    ]
    unexpected = [name for name in given if name not in known]
    if missing or unexpected or other:
        kinds = {"missing": missing, "unexpected": unexpected, "of another shape": other}
        listed = "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names)
        mend = _mend(len(source) - len(other), len(wanted), missing, unexpected)
        raise UserError(f"{what} does not fit the model: {listed}: {mend}")
    return Fit(source=source, left_new=left_new, renamed=_said(prefix, added, source.values()))


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
    by_model = versions if not fitted.renamed else {}

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


def _prefix(wanted: Mapping[str, Shape], given: Mapping[str, Shape]) -> tuple[str, str]:
    """Return the prefix to take off the given names, and the one to put before them; at most one is set."""
    plain = sum(given.get(name) == shape for name, shape in wanted.items())
    off = _commonest(given, wanted)
    on = _commonest(wanted, given)
    best = max((plain, "", ""), (off[0], off[1], ""), (on[0], "", on[1]), key=lambda each: each[0])
    return best[1], best[2]


def _commonest(longer: Mapping[str, Shape], shorter: Mapping[str, Shape]) -> tuple[int, str]:
    """Return the prefix without which most of the longer names are the shorter ones, and how many are."""
    counts: Counter[str] = Counter()
    for name, shape in longer.items():
        place = name.find(".") + 1
        while place:
            if shorter.get(name[place:]) == shape:
                counts[name[:place]] += 1
            place = name.find(".", place) + 1
    most = max(counts.values(), default=0)
    prefix = min((each for each, count in counts.items() if count == most), default="", key=len)
    return most, prefix


def _renamed(
    wanted: Mapping[str, Shape], given: Mapping[str, Shape], prefix: str, added: str
) -> dict[str, str]:
    """Return the given name of each wanted one; a name without the prefix stands for itself."""
    found = {name: name for name in given if name in wanted}
    found |= {added + name: name for name in given if added and added + name in wanted}
    found |= {
        name.removeprefix(prefix): name
        for name in given
        if prefix and name.startswith(prefix) and name.removeprefix(prefix) in wanted
    }
    return {name: found[name] for name in wanted if name in found}


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


def _said(prefix: str, added: str, used: Iterable[str]) -> str:
    if added:
        return f", with '{added}' before their names"
    if prefix and any(name.startswith(prefix) for name in used):
        return f", without '{prefix}' before their names"
    return ""


def _mend(fitting: int, wanted: int, missing: list[str], unexpected: list[str]) -> str:
    if 2 * fitting < wanted:
        return "give the --model that these weights are of, or weights of this one"
    if missing:
        return "give a file that has them, or a model without them"
    if unexpected:
        return "save the state dict without them, or give a model that has them"
    return "give the model and the data the sizes that these weights were made for"


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _text(shape: Shape) -> str:
    return str(list(shape))
