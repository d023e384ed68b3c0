"""Measures what a model's units and heads cost in a run, and cuts the model accordingly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from pipelocal.errors import UserError
from pipelocal.models import Chain
from pipelocal.objective import SGR, ObjectiveRecipe, Place
from pipelocal.partition import Cut, by_count, from_names, from_text
from pipelocal.partition.cost_model import CostModel
from pipelocal.partition.partitioners import Partitioner, PartitionRequest, partition
from pipelocal.partition.profile import Meter, Seen, profile_chain
from pipelocal.partition.replicas import paces
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.options import RunOptions
from pipelocal.seeding import derive_seed
from pipelocal.system.tensor_kind import TensorKind
from pipelocal.transport.contract import sent_row_bytes
from pipelocal.transport.packing import row_bytes


@dataclass(frozen=True, kw_only=True)
class CutRequest:
    """Where the user wants the cut.

    Args:
        stages: number of stages, if ``cut`` is not given.
        cut: names of the units with which stages begin, or text as for ``--cut``; None to let the
            partitioner choose.
        partitioner: chooses the cut.
        name: the partitioner's name, for errors.
        measured: whether the partitioner measures, so that its choice may vary between runs.
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

    def at(self, names: Sequence[str]) -> CutRequest:
        """Return a request for the cut before these units."""
        return replace(self, cut=tuple(names), stages=len(names) + 1)

    def first(self, chain: Chain, *, uncut: bool) -> list[Cut]:
        """Return the cut known before anything is measured; by default equal numbers of units.

        Raises:
            UserError: the model cannot be cut that way.
        """
        if uncut:
            return by_count(chain, 1)
        return self.sections(chain)

    def sections(self, chain: Chain) -> list[Cut]:
        """Return the same, also of a model that is trained uncut.

        Raises:
            UserError: the model cannot be cut that way.
        """
        if self.cut is None:
            return by_count(chain, self.stages)
        if isinstance(self.cut, str):
            return from_text(chain, self.cut)
        return from_names(chain, list(self.cut), what="cut")

    def drawn(self, blueprint: Blueprint) -> Blueprint:
        """Return a blueprint with this cut, as far as it is known before anything is measured.

        Raises:
            UserError: the model cannot be cut that way.
        """
        chain, uncut = blueprint.chain, blueprint.recipe.uncut
        sections = self.sections(chain) if uncut else None
        return replace(blueprint.cut_into(self.first(chain, uncut=uncut)), sections=sections)


def partitioned(
    blueprint: Blueprint,
    request: CutRequest,
    options: RunOptions,
    measure: Callable[[], CostModel],
) -> Blueprint:
    """Cut the blueprint as the partitioner chooses; return it unchanged if the user gave the cut.

    Args:
        blueprint: the model, with the requested number of stages.
        request: where the user wants the cut.
        options: the run's options; replicas make a stage faster.
        measure: measures what units and heads cost, when first asked.

    Raises:
        UserError: no cut keeps within the memory limit, or a user's partitioner returns no cut.
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
    blueprint: Blueprint,
    options: RunOptions,
    meter: Meter,
    *,
    batch_size: int,
    seen: Seen | None = None,
    as_cut: bool = False,
) -> CostModel:
    """Measure the cost of every unit and of every head that a cut could need.

    Args:
        blueprint: the model.
        options: the run's options; the window and the encoding of outputs matter.
        meter: measures durations.
        batch_size: number of rows in a training batch.
        seen: what was measured for other heads of the same model, which is added to.
        as_cut: whether to measure the network that is trained with the blueprint's cut, where the objective
            puts something into the units; the costs are then of this cut alone.

    Raises:
        UserError: a unit or a head cannot be differentiated twice, as exact reconciliation requires.
    """
    recipe, chain = blueprint.recipe, blueprint.network if as_cut else blueprint.chain
    objective = recipe.objective
    sgr = objective if isinstance(objective, SGR) else None
    exact = sgr is not None and sgr.exact
    place = Place(number=1, stages=1, input_shape=(), output_shape=(), total_steps=1)
    profile = profile_chain(
        chain,
        blueprint.heads.build,
        meter,
        batch_size=batch_size,
        classes=blueprint.classes,
        target=blueprint.info.target,
        loss=lambda output, target: recipe.task.loss(output, target).mean,
        exact=exact,
        optimizer=lambda named: recipe.make_optimizer(named, place),
        seed=recipe.seed,
        seen=seen,
        beside=_beside(objective, chain),
    )
    encodings = [
        objective.delta_encoding(shape, derive_seed(recipe.seed, "delta", 0))
        for shape in blueprint.shapes
    ]
    info = blueprint.info
    target = info.train_target or info.target
    ids = TensorKind(name="ids", shape=(), dtype=torch.int64)
    every, passes = objective.reconcile_every, 0.0
    if sgr is not None and not sgr.exact:
        passes = 2 * sgr.fraction if sgr.fraction < 1 else 1.0
    return CostModel(
        profile=profile,
        x_bytes=[batch_size * sent_row_bytes(kinds, options.wire) for kinds in chain.crossing],
        label_bytes=batch_size * (target.bytes_per_row + ids.bytes_per_row),
        delta_bytes=[batch_size * row_bytes(encoding) for encoding in encodings],
        reconcile_share=0.0 if every is None else 1 / every,
        passes=passes,
        window=options.window,
        packed=options.wire != "float32",
        light_stem=_light_stem(chain),
        trains_beside=getattr(objective, "trains_beside", None),
    )


def _beside(objective: ObjectiveRecipe, chain: Chain) -> Callable[[int], nn.Module | None] | None:
    """Return what builds the module that an objective trains beside a head; None if it trains none.

    It is called with the index of the unit before which the stage ends. The shapes are those of a stage of
    one unit: a longer one has another input.
    """
    build: Callable[[Place], nn.Module | None] | None = getattr(objective, "beside_head", None)
    if build is None:
        return None
    kinds = [chain.inputs, *chain.crossing]

    def beside(stop: int) -> nn.Module | None:
        place = Place(
            number=1,
            stages=2,
            input_shape=kinds[stop - 1][0].shape,
            output_shape=kinds[stop][0].shape,
            sample_shape=chain.input_shape,
            total_steps=1,
        )
        with suppress(UserError):  # such a cut is refused where it is made
            return build(place)
        return None

    return beside


def _light_stem(chain: Chain) -> bool:
    first, *others = chain.multiply_adds()[:-1]
    return first * len(others) < sum(others)
