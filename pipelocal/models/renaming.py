"""How the names of a state dict differ from those of a model: a common prefix, and old names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipelocal.models.unit import Shape

OLD_ENDS = {".gamma": ".weight", ".beta": ".bias"}
"""Ends of names in old files of Hugging Face, such as BERT's, and what they have been called since."""


@dataclass(frozen=True, kw_only=True)
class Renaming:
    """Turns the names of a state dict into the model's; at most one prefix is set."""

    off: str = ""
    """Prefix to take off the given names that have it."""
    on: str = ""
    """Prefix to put before the given names."""

    @classmethod
    def between(cls, given: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Renaming:
        """Find the prefix with which most tensors of the model are found, by name and shape."""
        plain = sum(given.get(name) == shape for name, shape in wanted.items())
        (off, prefix_off), (on, prefix_on) = _commonest(given, wanted), _commonest(wanted, given)
        if plain >= max(off, on):
            return cls()
        return cls(off=prefix_off) if off >= on else cls(on=prefix_on)

    def own(self, name: str, wanted: Collection[str]) -> str:
        """Return the model's name for a given one, or for one that it lacks, what it would be.

        A name that is the model's without the prefix stands for itself.
        """
        plain = self.on + name.removeprefix(self.off)
        candidates = [plain, name]
        candidates += [
            plain.removesuffix(old) + new for old, new in OLD_ENDS.items() if plain.endswith(old)
        ]
        return next((each for each in candidates if each in wanted), plain)

    def describe(self) -> str:
        """Return words that follow a number of tensors; empty if the names are the same."""
        if self.off:
            return f", without '{self.off}' before their names"
        return f", with '{self.on}' before their names" if self.on else ""


def _commonest(longer: Mapping[str, Shape], shorter: Mapping[str, Shape]) -> tuple[int, str]:
    """Return how many of the longer names are shorter ones without some prefix, and that prefix."""
    counts: Counter[str] = Counter()
    for name, shape in longer.items():
        place = name.find(".") + 1
        while place:
            if shorter.get(name[place:]) == shape:
                counts[name[:place]] += 1
            place = name.find(".", place) + 1
    most = max(counts.values(), default=0)
    return most, min((each for each, count in counts.items() if count == most), default="", key=len)
