"""Cuts of a chain: which units form which stage."""

from __future__ import annotations

import re
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
        """Return the names of the first and the last unit, such as ``stem..block2``."""
        first, last = chain.units[self.start].name, chain.units[self.stop - 1].name
        return first if first == last else f"{first}..{last}"


def even_blocks(items: int, blocks: int) -> list[range]:
    """Split ``items`` into ``blocks`` contiguous ranges whose lengths differ by at most one, longer first."""
    size, longer = divmod(items, blocks)
    starts = [i * size + min(i, longer) for i in range(blocks + 1)]
    return [range(starts[i], starts[i + 1]) for i in range(blocks)]


def check_stages(chain: Chain, stages: int) -> None:
    """Raise a :class:`UserError` if the chain cannot be cut into this many stages."""
    units = len(chain.units)
    if not 1 <= stages <= units:
        raise UserError(
            f"--stages {stages}: this model has {units} units that can be stages of their own, "
            f"so choose from 1 to {units}"
        )


def by_count(chain: Chain, stages: int) -> list[Cut]:
    """Cut into equal numbers of units; the first stages get one more if they do not divide evenly.

    Raises:
        UserError: fewer than one stage, or more stages than units.
    """
    check_stages(chain, stages)
    blocks = even_blocks(len(chain.units), stages)
    return [Cut(start=block.start, stop=block.stop) for block in blocks]


def from_text(chain: Chain, text: str) -> list[Cut]:
    """Parse cuts as a user writes them.

    Args:
        chain: the model.
        text: either the names of the units with which the stages after the first begin, such as
            ``block2,block5``, or the number of units of every stage, such as ``2,3,4``. A backslash
            escapes the next character: ``3x3\\,a`` is the unit ``3x3,a``. Numbers that could be
            either are taken as names.

    Raises:
        UserError: an unknown unit, units out of order or named twice, an empty stage, or numbers
            that do not add up.
    """
    names, words = _names(chain), _words(text)
    counts = _counts(words)
    if counts is None or not set(words).isdisjoint(names):
        try:
            return from_names(chain, words, what=f"--cut {text}")
        except UserError:
            if counts is None or min(counts) < 1 or sum(counts) != len(names):
                raise
    if min(counts) < 1:
        raise UserError(f"--cut {text}: every stage needs at least one unit")
    if sum(counts) != len(names):
        raise UserError(
            f"--cut {text} adds up to {sum(counts)} units, but this model has {len(names)}"
        )
    return _between([sum(counts[:i]) for i in range(len(counts))], len(names))


def to_text(chain: Chain, cuts: Sequence[Cut]) -> str:
    """Format cuts as :func:`from_text` takes them."""
    return ",".join(map(_escaped, names_of(chain, cuts)))


def other_reading(chain: Chain, text: str) -> str | None:
    """Return a note if the text could also mean something else: unit names that look like counts."""
    counts = _counts(_words(text))
    if counts is None or min(counts) < 1 or sum(counts) != len(chain.units):
        return None
    cuts = from_text(chain, text)
    meant = _between([sum(counts[:i]) for i in range(len(counts))], len(chain.units))
    if cuts == meant:
        return None
    listed = ", ".join(map(str, counts))
    return (
        f"--cut {text} names the units with which stages begin, in {len(cuts)} stages; for stages of "
        f"{listed} units give --cut {to_text(chain, meant) or chr(39) * 2}"
    )


def from_names(chain: Chain, words: Sequence[str], *, what: str) -> list[Cut]:
    """Make cuts from the names of the units with which the stages after the first begin.

    Args:
        chain: the model.
        words: the names, in the model's order.
        what: where the names come from, for the error.

    Raises:
        UserError: an unknown unit, or units out of order or named twice.
    """
    names, starts = _names(chain), [0]
    for word in words:
        if word not in names:
            known = ", ".join(map(_escaped, names))
            if word == chain.classifier.name:
                raise UserError(
                    f"{what}: '{word}' is the classifier, which is part of the last stage; the units that a "
                    f"stage can begin with are {known}"
                )
            raise UserError(f"{what}: this model has no unit '{word}'; its units are {known}")
        start = names.index(word)
        if start == 0:
            raise UserError(
                f"{what}: '{word}' is the model's first unit, with which stage 1 begins "
                f"anyway; name the first units of the stages after it"
            )
        if start <= starts[-1]:
            raise UserError(
                f"{what}: '{word}' is named twice or does not come after "
                f"'{names[starts[-1]]}' in the model; name units in the model's order, each once"
            )
        starts.append(start)
    return _between(starts, len(names))


def names_of(chain: Chain, cuts: Sequence[Cut]) -> list[str]:
    """Return the names that :func:`from_names` takes."""
    return [chain.units[cut.start].name for cut in cuts[1:]]


def _names(chain: Chain) -> list[str]:
    return [unit.name for unit in chain.units]


def _between(starts: list[int], units: int) -> list[Cut]:
    stops = [*starts[1:], units]
    return [Cut(start=start, stop=stop) for start, stop in zip(starts, stops, strict=True)]


def _words(text: str) -> list[str]:
    """Split text at commas and strip spaces; a backslash escapes the next character."""
    if not text.strip():
        return []
    # Each piece is an escaped character, a comma, a run of spaces, or one other character.
    pieces = re.findall(r"\\(?s:.)|,|\s+|.", text)
    words: list[list[str]] = [[]]
    for piece in pieces:
        if piece == ",":
            words.append([])
        else:
            words[-1].append(piece)
    return ["".join(_kept(piece) for piece in _stripped(word)) for word in words]


def _stripped(pieces: list[str]) -> list[str]:
    while pieces and pieces[0].isspace():
        pieces = pieces[1:]
    while pieces and pieces[-1].isspace():
        pieces = pieces[:-1]
    return pieces


def _kept(piece: str) -> str:
    return piece[1:] if len(piece) == 2 and piece[0] == "\\" else piece


def _escaped(name: str) -> str:
    """Escape a name for :func:`_words`."""
    return re.sub(r"[\\,]|^\s|\s\Z", r"\\\g<0>", name)


def _counts(words: list[str]) -> list[int] | None:
    """Return the words as numbers; None if they are not numbers."""
    if words and all(re.fullmatch(r"-?[0-9]{1,18}", word) for word in words):
        return [int(word) for word in words]
    return None
