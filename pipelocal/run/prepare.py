"""Prepares a run: rank 0 chooses the folder, opens the data, finds the start and tells the other ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import torch

from pipelocal.checkpoint.description import Description, ModelDescription, own_code, versions
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.data.batches import Batches
from pipelocal.errors import UserError
from pipelocal.partition import from_text, names_of
from pipelocal.partition.cost_model import CostModel
from pipelocal.partition.measured import Stopwatch
from pipelocal.partition.replicas import choose_replicas, parse_replicas, replicas_text
from pipelocal.pipeline.placement import place
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import World
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.choose_folder import choose_folder
from pipelocal.run.combinations import check_combinations, check_stages
from pipelocal.run.costs import cost_model, partitioned
from pipelocal.run.identity import identity
from pipelocal.run.recovery import Start, find_start, forget_what_comes_again
from pipelocal.run.spec import Spec

FOLDER = "folder"
"""Key of the run's folder, read by the other ranks and by later attempts."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What rank 0 finds out and tells the other ranks."""

    folder: str
    steps_per_epoch: int = 0
    batch_size: int = 0
    """Number of rows in the largest batch."""
    smallest_batch: int = 0
    """Number of rows in the smallest training batch."""
    cut: list[str] = field(default_factory=list)
    """Names of the units with which the stages after the first begin."""
    replicas: list[int] = field(default_factory=list)
    """Number of replicas of every stage."""
    start: dict[str, Any] = field(default_factory=dict)
    """Fields of :class:`~pipelocal.run.recovery.Start`."""
    finished: bool = False
    """Whether an earlier attempt had finished before it lost a rank."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a rank starts with."""

    findings: Findings
    folder: RunFolder
    batches: Batches | None = None
    """The data, on rank 0; None on other ranks, and if nothing is left to do."""
    description: Description | None = None
    """The run's description, on rank 0; None on other ranks, and if nothing is left to do."""


def prepare(
    spec: Spec,
    blueprint: Blueprint,
    model: ModelDescription,
    device: torch.device,
    world: World,
    control: ControlPlane,
) -> Prepared:
    """Prepare the run on rank 0, or wait for rank 0 to do so.

    Raises:
        UserError: the folder, the data or the snapshot to continue from cannot be used.
        Interrupted: another rank failed.
    """
    if world.rank > 0:
        facts = Findings(**control.wait_for("facts", timeout_s=spec.options.start_timeout))
        return Prepared(findings=facts, folder=RunFolder(facts.folder))
    earlier = _earlier_folder(world)
    finished = _finished_before(spec, earlier, world)
    batches, description = None, None
    if finished is not None:
        facts, folder = Findings(folder=str(finished.path), finished=True), finished
    else:
        folder = choose_folder(spec, model, earlier=earlier) if spec.keeps else RunFolder(".")
        batches = spec.batches()
        data = batches.describe()
        if folder.goes_on and spec.init is not None and model.init is None:
            # The file is gone, which does not matter; what it was is still known.
            model = replace(model, init=folder.description().model.init)
        description = Description(
            model=model, references=own_code(spec.references), data=data, versions=versions()
        )
        stopwatch = Stopwatch(device=device)
        size = batches.batch_size
        costs = cache(lambda: cost_model(blueprint, spec.options, stopwatch, batch_size=size))
        cut = _choose_cut(spec, blueprint, costs, folder)
        blueprint = blueprint.cut_at(cut)
        if blueprint.network is not blueprint.chain:
            costs = cache(
                lambda: cost_model(blueprint, spec.options, stopwatch, batch_size=size, as_cut=True)
            )
        counts = _choose_replicas(spec, blueprint, costs, folder, world.size)
        spec = spec.resolved(replicas=replicas_text(counts))
        check_combinations(spec.options, spec.recipe)  # includes the replicas chosen here
        check_stages(spec.recipe, len(blueprint.sections or blueprint.cuts))
        place(blueprint.stages, world.size, counts)  # refuses a number of ranks that does not fit
        start = find_start(folder, spec, blueprint, cut, description, batches.steps_per_epoch)
        facts = Findings(
            folder=str(folder.path),
            steps_per_epoch=batches.steps_per_epoch,
            batch_size=batches.batch_size,
            smallest_batch=batches.smallest_batch,
            cut=cut,
            replicas=counts,
            start=asdict(start),
        )
    control.put("facts", asdict(facts))
    return Prepared(findings=facts, folder=folder, batches=batches, description=description)


def _earlier_folder(world: World) -> str | None:
    """Return the folder of the previous attempt, if torchrun has restarted all ranks."""
    return world.lasting.get(FOLDER).decode() if world.lasting.check([FOLDER]) else None


def _finished_before(spec: Spec, earlier: str | None, world: World) -> RunFolder | None:
    """Return this run's folder if the run had finished before a lost rank made torchrun restart."""
    path = spec.out or earlier
    if path is None or not world.restarted:
        return None
    folder = RunFolder(path)
    if folder.finished and identity(spec, folder.options()) == identity(spec):
        return folder
    return None


def begin(prepared: Prepared, spec: Spec, start: Start, control: ControlPlane) -> RunFolder:
    """Create or reopen the folder on rank 0; without ``--out`` its number may have changed by now.

    Raises:
        UserError: the folder cannot be created.
        Interrupted: another rank failed.
    """
    folder = prepared.folder
    if prepared.description is None:  # on the other ranks
        return RunFolder(control.wait_for(FOLDER, timeout_s=spec.options.start_timeout))
    folder.begin(spec.text, prepared.description)
    if folder.goes_on:
        forget_what_comes_again(folder, start)
    control.world.lasting.set(FOLDER, str(folder.path))
    control.put(FOLDER, str(folder.path))
    return folder


def _choose_cut(
    spec: Spec, blueprint: Blueprint, costs: Callable[[], CostModel], folder: RunFolder
) -> list[str]:
    """Choose the cut for all ranks, measuring on this rank if the options ask for it."""
    if spec.cut.measured and folder.goes_on:
        before = folder.options().get("cut")  # a new measurement may give another cut
        if before is not None:
            return names_of(blueprint.chain, from_text(blueprint.chain, before))
    return partitioned(blueprint, spec.cut, spec.options, costs).cut_names


def _choose_replicas(
    spec: Spec,
    blueprint: Blueprint,
    costs: Callable[[], CostModel],
    folder: RunFolder,
    ranks: int,
) -> list[int]:
    """Choose every stage's replicas: as the options say, or by measured times for the available ranks."""
    counts = spec.options.replica_counts(blueprint.stages)
    if counts is not None:
        return counts
    if folder.goes_on:
        text = folder.options().get("replicas", "1")  # a new measurement may differ
        before = parse_replicas("--replicas", text, blueprint.stages)
        if before is not None and (sum(before) == ranks or ranks == 1):
            return before
    if ranks == 1:
        return [1] * blueprint.stages
    counts = choose_replicas(costs().seconds_of(blueprint.cuts), ranks)
    if sum(counts) < ranks:
        raise UserError(
            f"--replicas auto finds {replicas_text(counts)} best, for which {sum(counts)} ranks are "
            f"enough: start so many, or say how many replicas each stage is to have"
        )
    return counts
