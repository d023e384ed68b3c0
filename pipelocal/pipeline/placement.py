"""Assigns stages and their replicas to ranks.

Examples: four stages on four ranks, on two ranks, and three with uneven replicas (``--replicas 1,2,1``)::

    blocks     1    2    3    4         1-2   3-4           1     2     3
    ranks      0    1    2    3          0     1            0    1,2    3
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelocal.errors import UserError
from pipelocal.partition import even_blocks
from pipelocal.transport.connect import Pair
from pipelocal.transport.deal import Deal


@dataclass(frozen=True, kw_only=True)
class Block:
    """Neighbouring stages that share their ranks."""

    first: int
    last: int
    """Numbers of the first and the last stage, from 1."""
    ranks: tuple[int, ...]
    """The rank of each replica, in order."""

    @property
    def stages(self) -> range:
        """The numbers of the stages."""
        return range(self.first, self.last + 1)

    @property
    def replicas(self) -> int:
        """Number of replicas of the stages."""
        return len(self.ranks)

    def deal(self, replica: int) -> Deal:
        """Return which batches a replica gets."""
        return Deal(every=self.replicas, first=replica)


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A rank's place in the pipeline."""

    index: int
    """Index of its block, from 0."""
    block: Block
    replica: int
    """Index of its replica, from 0."""

    @property
    def deal(self) -> Deal:
        """Which batches this rank gets."""
        return self.block.deal(self.replica)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The blocks of a run, in order."""

    blocks: tuple[Block, ...]

    def seat(self, rank: int) -> Seat:
        """Return the place of a rank."""
        for index, block in enumerate(self.blocks):
            if rank in block.ranks:
                return Seat(index=index, block=block, replica=block.ranks.index(rank))
        raise AssertionError(f"rank {rank} has no place in {self}")

    def edges(self, index: int) -> Iterator[tuple[int, int, Deal]]:
        """Yield the edges after a block: sending replica, receiving replica, and the batches that pass."""
        source, target = self.blocks[index], self.blocks[index + 1]
        for i in range(source.replicas):
            for j in range(target.replicas):
                deal = source.deal(i).of_edge(target.deal(j))
                if deal is not None:
                    yield i, j, deal

    def pairs(self, *, back: bool = False) -> list[Pair]:
        """Return sender and receiver of every edge between ranks, those after every other block first.

        Args:
            back: whether each edge has one back, which then follow.
        """
        indices = range(len(self.blocks) - 1)
        forward: list[Pair] = [
            (self.blocks[index].ranks[i], self.blocks[index + 1].ranks[j])
            for index in sorted(indices, key=lambda index: index % 2)
            for i, j, _ in self.edges(index)
        ]
        return forward + [(target, source) for source, target in forward if back]


def place(stages: int, ranks: int, replicas: Sequence[int] = (1,)) -> Placement:
    """Place contiguous blocks of stages, as even as possible, each with its replicas on adjacent ranks.

    Args:
        stages: number of stages.
        ranks: number of ranks. A single rank holds all stages, whatever the replicas.
        replicas: number of replicas of every stage, or one number for all.

    Raises:
        UserError: there are too many ranks, or not as many as the replicas need.
    """
    if ranks == 1:
        return Placement(blocks=(Block(first=1, last=stages, ranks=(0,)),))
    if len(set(replicas)) > 1:
        return _one_stage_a_rank(stages, ranks, replicas)
    each = replicas[0]
    if ranks % each:
        raise UserError(
            f"--replicas {each} on {ranks} ranks: start a multiple of {each}, or one process alone"
        )
    if ranks // each > stages:
        raise UserError(
            f"{ranks} ranks for {stages} stages: a stage cannot be split over ranks, so start at most "
            f"{stages * each} (torchrun --nproc-per-node {stages * each}), cut more stages (--stages "
            f"{ranks // each}), or give stages replicas (--replicas)"
        )
    blocks = even_blocks(stages, ranks // each)
    return Placement(
        blocks=tuple(
            Block(
                first=block.start + 1,
                last=block.stop,
                ranks=tuple(range(each * index, each * (index + 1))),
            )
            for index, block in enumerate(blocks)
        )
    )


def _one_stage_a_rank(stages: int, ranks: int, replicas: Sequence[int]) -> Placement:
    if ranks != sum(replicas):
        text = ",".join(map(str, replicas))
        raise UserError(
            f"--replicas {text} on {ranks} ranks: start {sum(replicas)} (torchrun --nproc-per-node "
            f"{sum(replicas)}), or one process alone"
        )
    assert len(replicas) == stages, "the options were checked"
    starts = [sum(replicas[:i]) for i in range(stages + 1)]
    return Placement(
        blocks=tuple(
            Block(first=i + 1, last=i + 1, ranks=tuple(range(starts[i], starts[i + 1])))
            for i in range(stages)
        )
    )
