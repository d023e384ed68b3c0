"""Which rank holds which stages."""

from pipelocal.errors import UserError
from pipelocal.partition import even_blocks


def place(stages: int, ranks: int) -> list[range]:
    """For each rank the numbers (from 1) of its stages: contiguous blocks, as even as can be.

    Raises:
        UserError: more ranks than stages.
    """
    if ranks > stages:
        raise UserError(
            f"{ranks} ranks for {stages} stages: a stage cannot be split over ranks, so start at "
            f"most {stages} (torchrun --nproc-per-node {stages}) or cut more stages (--stages {ranks})"
        )
    return [range(block.start + 1, block.stop + 1) for block in even_blocks(stages, ranks)]
