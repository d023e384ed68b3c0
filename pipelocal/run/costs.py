"""What the units and heads of a model cost in a run, and the cut that follows from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelocal.models import Chain
from pipelocal.objective import SGR, Place
from pipelocal.partition import Cut, by_count, from_names, from_text
from pipelocal.partition.cost_model import CostModel
from pipelocal.partition.partitioners import Partitioner, PartitionRequest, partition
from pipelocal.partition.profile import Meter, profile_chain
from pipelocal.partition.replicas import paces
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.options import RunOptions
from pipelocal.seeding import derive_seed
from pipelocal.transport.packing import PACKINGS, row_bytes


@dataclass(frozen=True, kw_only=True)
class CutRequest:
    """Where the user wants the cut.

    Args:
        stages: how many, where it is not said where.
        cut: names of the units with which stages begin, or text as of ``--cut``; None if it is for the
            partitioner.
        partitioner: chooses it.
        name: the partitioner's, for errors.
        measured: whether the partitioner measures, so that another time it may choose otherwise.
        memory_limit: bytes that no stage may exceed; None for no limit.
        speeds: relative speed of each stage's device; None if they are equal.
    """

    stages: int
    cut: str | tuple[str, ...] | None
    partitioner: Partitioner
    name: str
    measured: bool
    memory_limit: int | None = None
    speeds: tuple[float, ...] | None = None

    def first(self, chain: Chain, *, uncut: bool) -> list[Cut]:
        """The cut that is known before anything is measured; equal numbers of units without a better one.

        Raises:
            UserError: the model cannot be cut like that.
        """
        if uncut:
            return by_count(chain, 1)
        if self.cut is None:
            return by_count(chain, self.stages)
        if isinstance(self.cut, str):
            return from_text(chain, self.cut)
        return from_names(chain, list(self.cut), what="cut")


def partitioned(
    blueprint: Blueprint,
    request: CutRequest,
    options: RunOptions,
    measure: Callable[[], CostModel],
) -> Blueprint:
    """The blueprint, cut as the partitioner says; as it is where the user has said where.

    Args:
        blueprint: with the number of stages that is wanted.
        request: what is wanted.
        options: those of the run; replicas make a stage faster.
        measure: finds out what units and heads cost, if somebody asks.

    Raises:
        UserError: no cut keeps the memory limit, or a partitioner of the user's own returns no cut.
    """
    if request.cut is not None or blueprint.recipe.uncut:
        return blueprint
    speeds = None if request.speeds is None else list(request.speeds)
    counts = options.replica_counts(blueprint.stages)
    asked = PartitionRequest(
        chain=blueprint.chain,
        stages=blueprint.stages,
        measure=measure,
        memory_limit=request.memory_limit,
        speeds=paces(speeds, counts, blueprint.stages),
    )
    return blueprint.cut_into(partition(request.partitioner, asked, name=request.name))


def cost_model(
    blueprint: Blueprint, options: RunOptions, meter: Meter, *, batch_size: int
) -> CostModel:
    """Cost every unit and every head that a cut could need.

    Args:
        blueprint: the model.
        options: those of the run; the window and the form of outputs matter.
        meter: says how long things take.
        batch_size: rows of a training batch.

    Raises:
        UserError: a unit or a head cannot be differentiated twice, as exact reconciliation wants it.
    """
    recipe, chain = blueprint.recipe, blueprint.chain
    objective = recipe.objective
    sgr = objective if isinstance(objective, SGR) else None
    exact = sgr is not None and sgr.exact
    place = Place(number=1, stages=1, input_shape=(), output_shape=(), total_steps=1)
    profile = profile_chain(
        chain,
        blueprint.shapes,
        blueprint.head,
        meter,
        batch_size=batch_size,
        classes=blueprint.classes,
        exact=exact,
        optimizer=lambda named: recipe.make_optimizer(named, place),
        target_shape=blueprint.target_shape,
        seed=recipe.seed,
    )
    encodings = [
        objective.delta_encoding(shape, derive_seed(recipe.seed, "delta", 0))
        for shape in blueprint.shapes
    ]
    packings = [PACKINGS.get(options.wire)(shape) for shape in blueprint.shapes]
    every, passes = objective.reconcile_every, 0.0
    if sgr is not None and not sgr.exact:
        passes = 2 * sgr.fraction if sgr.fraction < 1 else 1.0
    return CostModel(
        profile=profile,
        x_bytes=[batch_size * row_bytes(packing) for packing in packings],
        delta_bytes=[batch_size * row_bytes(encoding) for encoding in encodings],
        reconcile_share=0.0 if every is None else 1 / every,
        passes=passes,
        window=options.window,
    )
