"""Where to cut a chain into stages."""

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
    """``items`` in ``blocks`` contiguous ranges whose lengths differ by one at most, longer first."""
    size, longer = divmod(items, blocks)
    starts = [i * size + min(i, longer) for i in range(blocks + 1)]
    return [range(starts[i], starts[i + 1]) for i in range(blocks)]


def by_count(chain: Chain, stages: int) -> list[Cut]:
    """Equal numbers of units, the first stages one more where it does not come out even.

    Raises:
        UserError: fewer than one stage, or more stages than units.
    """
    units = len(chain.units)
    if not 1 <= stages <= units:
        raise UserError(
            f"--stages {stages}: this model has {units} units that can be stages of their own, "
            f"so choose from 1 to {units}"
        )
    return [Cut(start=block.start, stop=block.stop) for block in even_blocks(units, stages)]
