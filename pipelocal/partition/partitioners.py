"""Partitioners decide where to cut a chain if the user does not: the registry of ``--balance``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from pipelocal.errors import UserError
from pipelocal.models.chain import Chain
from pipelocal.partition.cost_model import CostModel, balanced
from pipelocal.partition.cut import Cut, even_blocks
from pipelocal.partition.from_run import corrected, is_run, stages_of
from pipelocal.references.importing import calling
from pipelocal.registry import Registry


@dataclass(frozen=True, kw_only=True)
class PartitionRequest:
    """The request that a partitioner gets.

    Args:
        chain: the model; ``chain.units`` are to be cut into stages.
        stages: number of stages.
        measure: measures what units and heads cost, which takes seconds; see :attr:`costs`.
        memory_limit: bytes that no stage may exceed (``--memory-limit``); None for no limit.
        speeds: relative speed of each stage's device (``--device-speeds``); None if they are equal.
    """

    chain: Chain
    stages: int
    measure: Callable[[], CostModel]
    memory_limit: int | None = None
    speeds: list[float] | None = None

    @cached_property
    def costs(self) -> CostModel:
        """The costs of stages, measured on first use."""
        return self.measure()


Partitioner = Callable[[PartitionRequest], Sequence[int]]
"""Returns the number of units of every stage, in order."""


WITHOUT_EFFECT = {"memory_limit": ("count",), "speeds": ("count", "memory")}
"""Partitioners that do not look at a part of the request."""


class Partitioners(Registry[Partitioner]):
    """The registry, in which the folder of a run stands for what its stages took."""

    def get(self, name: str) -> Partitioner:
        """See :class:`~pipelocal.registry.Registry`."""
        return partial(by_run, Path(name)) if self._is_run(name) else super().get(name)

    def later(self, name: str) -> Partitioner:
        """See :class:`~pipelocal.registry.Registry`."""
        return self.get(name) if self._is_run(name) else super().later(name)

    def check(self, name: str) -> None:
        """See :class:`~pipelocal.registry.Registry`; a folder that is no finished run is told when read."""
        if not self._is_run(name):
            super().check(name)

    def _is_run(self, name: str) -> bool:
        return name not in self and is_run(name)


PARTITIONERS = Partitioners("partitioner", takes="request")


@PARTITIONERS.register("count")
def by_count(request: PartitionRequest) -> list[int]:
    """Give stages equal numbers of units; the first get one more if they do not divide evenly."""
    return [len(block) for block in even_blocks(len(request.chain.units), request.stages)]


@PARTITIONERS.register("time")
def by_time(request: PartitionRequest) -> list[int]:
    """Make the slowest stage as fast as possible."""
    return _balanced(request, request.costs, "time")


@PARTITIONERS.register("memory")
def by_memory(request: PartitionRequest) -> list[int]:
    """Make the largest stage as small as possible."""
    return _balanced(request, request.costs, "memory")


def by_run(folder: Path, request: PartitionRequest) -> list[int]:
    """Make the slowest stage as fast as possible, by what the stages of a finished run took.

    Raises:
        UserError: it is no finished run, or one of another model.
    """
    chain = request.chain
    took = stages_of(folder, [unit.name for unit in chain.units], chain.input_shape)
    return _balanced(request, corrected(request.costs, took), "time")


def _balanced(request: PartitionRequest, costs: CostModel, balance: str) -> list[int]:
    cuts = balanced(
        costs,
        request.stages,
        balance=balance,
        memory_limit=request.memory_limit,
        speeds=request.speeds,
    )
    return [cut.stop - cut.start for cut in cuts]


def partition(partitioner: Partitioner, request: PartitionRequest, *, name: str) -> list[Cut]:
    """Cut as a partitioner says; errors call it ``name``.

    Raises:
        UserError: its result is not a cut of the chain.
    """
    with calling(f"--balance {name}"):
        counts = list(partitioner(request))
    units = len(request.chain.units)
    sound = all(isinstance(count, int) and count > 0 for count in counts)
    if not sound or len(counts) != request.stages or sum(counts) != units:
        raise UserError(
            f"--balance {name} says {counts}: a partitioner must return {request.stages} numbers of "
            f"units, one for each stage, each at least 1, that add up to {units}"
        )
    return [
        Cut(start=sum(counts[:stage]), stop=sum(counts[: stage + 1]))
        for stage in range(request.stages)
    ]
