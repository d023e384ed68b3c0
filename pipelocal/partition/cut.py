"""Cuts of a chain: which units form which stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelocal.errors import UserError
from pipelocal.models.chain import Chain


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The units ``start..stop-1`` of a chain, which form one stage."""

    start: int
    stop: int

    def describe(self, chain: Chain) -> str:
        """The names of the first and the last unit, such as ``stem..block2``."""
        first, last = chain.units[self.start].name, chain.units[self.stop - 1].name
        return first if first == last else f"{first}..{last}"


def even_blocks(items: int, blocks: int) -> list[range]:
    """``items`` in ``blocks`` contiguous ranges, of lengths that differ by one at most, longer first."""
    size, longer = divmod(items, blocks)
    starts = [i * size + min(i, longer) for i in range(blocks + 1)]
    return [range(starts[i], starts[i + 1]) for i in range(blocks)]


def check_stages(chain: Chain, stages: int) -> None:
    """A :class:`UserError` if the chain cannot be cut into so many stages."""
    units = len(chain.units)
    if not 1 <= stages <= units:
        raise UserError(
            f"--stages {stages}: this model has {units} units that can be stages of their own, "
            f"so choose from 1 to {units}"
        )


def by_count(chain: Chain, stages: int) -> list[Cut]:
    """Equal numbers of units, the first stages one more where it does not come out even.

    Raises:
        UserError: fewer than one stage, or more stages than units.
    """
    check_stages(chain, stages)
    blocks = even_blocks(len(chain.units), stages)
    return [Cut(start=block.start, stop=block.stop) for block in blocks]


def from_text(chain: Chain, text: str) -> list[Cut]:
    """Cuts as a user writes them.

    Args:
        chain: the model.
        text: either the names of the units with which the stages after the first begin, such as
            ``block2,block5``, or the number of units of every stage, such as ``2,3,4``.

    Raises:
        UserError: an unknown unit, units out of order or named twice, an empty stage, or numbers
            that do not add up.
    """
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    names = [unit.name for unit in chain.units]
    if words and all(word.lstrip("-").isdigit() for word in words) and not set(words) & set(names):
        starts = _starts_of_counts([int(word) for word in words], text, names)
    else:
        starts = _starts_of_names(words, text, names)
    stops = [*starts[1:], len(names)]
    return [Cut(start=start, stop=stop) for start, stop in zip(starts, stops, strict=True)]


def to_text(chain: Chain, cuts: Sequence[Cut]) -> str:
    """The names that :func:`from_text` takes."""
    return ",".join(chain.units[cut.start].name for cut in cuts[1:])


def _starts_of_counts(counts: list[int], text: str, names: list[str]) -> list[int]:
    if min(counts) < 1:
        raise UserError(f"--cut {text}: every stage needs at least one unit")
    if sum(counts) != len(names):
        raise UserError(
            f"--cut {text} adds up to {sum(counts)} units, but this model has {len(names)}"
        )
    return [sum(counts[:i]) for i in range(len(counts))]


def _starts_of_names(words: list[str], text: str, names: list[str]) -> list[int]:
    starts = [0]
    for word in words:
        if word not in names:
            raise UserError(
                f"--cut {text}: this model has no unit '{word}'; its units are {', '.join(names)}"
            )
        start = names.index(word)
        if start == 0:
            raise UserError(
                f"--cut {text}: '{word}' is the model's first unit, with which stage 1 begins "
                f"anyway; name the first units of the stages after it"
            )
        if start <= starts[-1]:
            raise UserError(
                f"--cut {text}: '{word}' is named twice or does not come after "
                f"'{names[starts[-1]]}' in the model; name units in the model's order, each once"
            )
        starts.append(start)
    return starts
