"""Before a run: rank 0 chooses the folder, reads the data and finds where to begin; the others are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import torch

from pipelocal.checkpoint.description import Description, ModelDescription, own_code, versions
from pipelocal.checkpoint.resume import identity
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.config import TrainConfig
from pipelocal.config.combinations import check_combinations
from pipelocal.data import ArrayDataset, load_dataset
from pipelocal.data.batches import BatchStream
from pipelocal.data.fingerprint import describe_data
from pipelocal.errors import UserError
from pipelocal.partition import from_text, names_of
from pipelocal.partition.cost_model import CostModel
from pipelocal.partition.measured import Stopwatch
from pipelocal.partition.replicas import choose_replicas, replicas_text
from pipelocal.pipeline.placement import place
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.world import World
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.recovery import Start, find_start, forget_what_comes_again

FOLDER = "folder"
"""Key of the run's folder, for the other ranks and for the attempts that follow."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What rank 0 finds out and the others are told."""

    folder: str
    steps_per_epoch: int = 0
    smallest_batch: int = 0
    """Rows of the smallest training batch."""
    cut: list[str] = field(default_factory=list)
    """Names of the units with which the stages after the first begin."""
    replicas: list[int] = field(default_factory=list)
    """Of every stage."""
    start: dict[str, Any] = field(default_factory=dict)
    """Of :class:`~pipelocal.run.recovery.Start`."""
    data: str = ""
    """Fingerprint of the data that rank 0 reads."""
    finished: bool = False
    """Whether an earlier attempt had come to its end, and lost a rank only then."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a rank begins with."""

    facts: Findings
    folder: RunFolder
    batches: BatchStream | None = None
    """On rank 0; None on the others, and if nothing is left to do."""
    description: Description | None = None
    """Likewise."""


def prepare(
    config: TrainConfig,
    blueprint: Blueprint,
    model: ModelDescription,
    device: torch.device,
    world: World,
    control: ControlPlane,
) -> Prepared:
    """Find out on rank 0, or wait until it has.

    Raises:
        UserError: the folder, the data or the snapshot to go on from cannot be used.
        Interrupted: another rank failed.
    """
    if world.rank > 0:
        facts = Findings(**control.wait_for("facts", timeout_s=config.start_timeout))
        return Prepared(facts=facts, folder=RunFolder(facts.folder))
    earlier = _earlier_folder(world)
    finished = _finished_before(config, config.out or earlier, world)
    batches, description = None, None
    if finished is not None:
        facts, folder = Findings(folder=str(finished.path), finished=True), finished
    else:
        folder = RunFolder.choose(config, model, earlier=earlier)
        batches = open_data(config)
        data = describe_data(batches.dataset)
        description = Description(
            model=model, references=own_code(config), data=data, versions=versions()
        )
        stopwatch = Stopwatch(device=device)
        costs = cache(lambda: blueprint.cost_model(config, stopwatch))
        cut = _choose_cut(config, blueprint, costs, folder)
        blueprint = blueprint.cut_at(cut)
        counts = _choose_replicas(config, blueprint, costs, folder, world.size)
        config = replace(config, replicas=replicas_text(counts))
        check_combinations(config)  # of what was chosen, which the options did not tell
        place(blueprint.stages, world.size, counts)  # which refuses ranks that do not fit
        facts = Findings(
            folder=str(folder.path),
            steps_per_epoch=batches.steps_per_epoch,
            smallest_batch=batches.smallest_batch,
            cut=cut,
            replicas=counts,
            start=asdict(
                find_start(folder, config, blueprint, cut, description, batches.steps_per_epoch)
            ),
            data=data["fingerprint"],
        )
    control.put("facts", asdict(facts))
    return Prepared(facts=facts, folder=folder, batches=batches, description=description)


def _earlier_folder(world: World) -> str | None:
    """Where the attempt before this one was, if torchrun has started all ranks anew."""
    return world.lasting.get(FOLDER).decode() if world.lasting.check([FOLDER]) else None


def _finished_before(config: TrainConfig, path: str | None, world: World) -> RunFolder | None:
    """This very run, if it had come to its end when a rank was lost, so that torchrun began anew."""
    if path is None or not world.restarted:
        return None
    folder = RunFolder(path)
    if folder.finished and identity(folder.config()) == identity(config):
        return folder
    return None


def begin(
    prepared: Prepared, config: TrainConfig, start: Start, control: ControlPlane
) -> RunFolder:
    """Make the folder on rank 0, or go on in it; without ``--out`` its number may be another one by now.

    Raises:
        UserError: it cannot be made.
        Interrupted: another rank failed.
    """
    folder = prepared.folder
    if prepared.description is None:  # on the other ranks
        return RunFolder(control.wait_for(FOLDER, timeout_s=config.start_timeout))
    folder.begin(config, prepared.description)
    if folder.goes_on:
        forget_what_comes_again(folder, start)
    control.world.lasting.set(FOLDER, str(folder.path))
    control.put(FOLDER, str(folder.path))
    return folder


def open_dataset(config: TrainConfig) -> ArrayDataset:
    """The data set that the options name, or so much of it."""
    dataset = load_dataset(config.data, root=config.data_root, seed=config.seed)
    return dataset if config.train_samples is None else dataset.first(config.train_samples)


def open_data(config: TrainConfig) -> BatchStream:
    """Its batches."""
    return BatchStream(
        open_dataset(config),
        batch_size=config.batch_size,
        seed=config.seed,
        drop_last=config.drop_last,
    )


def _choose_cut(
    config: TrainConfig,
    blueprint: Blueprint,
    costs: Callable[[], CostModel],
    folder: RunFolder,
) -> list[str]:
    """Where to cut, for all ranks: measured by this one where the options ask for it."""
    if config.balance != "count" and folder.goes_on:
        measured = folder.config().cut  # another measurement need not come out the same
        if measured is not None:
            return names_of(blueprint.chain, from_text(blueprint.chain, measured))
    return blueprint.partitioned(config, costs).cut_names


def _choose_replicas(
    config: TrainConfig,
    blueprint: Blueprint,
    costs: Callable[[], CostModel],
    folder: RunFolder,
    ranks: int,
) -> list[int]:
    """The replicas of every stage: as the options say, or by measured times for the ranks there are."""
    counts = config.replica_counts(blueprint.stages)
    if counts is not None:
        return counts
    if folder.goes_on:
        before = folder.config().replica_counts(blueprint.stages)  # another measurement may differ
        if before is not None and (sum(before) == ranks or ranks == 1):
            return before
    if ranks == 1:
        return [1] * blueprint.stages
    seconds = [costs().seconds(cut.start, cut.stop) for cut in blueprint.cuts]
    counts = choose_replicas(seconds, ranks)
    if sum(counts) < ranks:
        raise UserError(
            f"--replicas auto finds {replicas_text(counts)} best, for which {sum(counts)} ranks are "
            f"enough: start so many, or say how many replicas each stage is to have"
        )
    return counts
