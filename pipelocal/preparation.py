"""Before a run: rank 0 chooses the folder, reads the data and finds where to begin; the others are told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from pipelocal.build import Blueprint
from pipelocal.checkpoint.resume import identity
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.config import TrainConfig
from pipelocal.control import ControlPlane
from pipelocal.data import load_dataset
from pipelocal.data.batches import BatchStream
from pipelocal.partition import to_text
from pipelocal.partition.measured import Stopwatch
from pipelocal.recovery import find_start
from pipelocal.world import START_TIMEOUT_S, World

FOLDER = "folder"
"""Key of the run's folder, for the attempts that follow."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What rank 0 finds out and the others are told."""

    folder: str
    steps_per_epoch: int = 0
    smallest_batch: int = 0
    """Rows of the smallest training batch."""
    cut: str = ""
    start: dict[str, Any] = field(default_factory=dict)
    """Of :class:`~pipelocal.recovery.Start`."""
    finished: bool = False
    """Whether an earlier attempt had come to its end, and lost a rank only then."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a rank begins with."""

    facts: Facts
    folder: RunFolder
    batches: BatchStream | None
    """On rank 0; None on the others, and if nothing is left to do."""


def prepare(
    config: TrainConfig,
    blueprint: Blueprint,
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
        facts = Facts(**control.wait_for("facts", timeout_s=START_TIMEOUT_S))
        return Prepared(facts=facts, folder=RunFolder(facts.folder), batches=None)
    earlier = _earlier_folder(world)
    finished = _finished_before(config, config.out or earlier, world)
    if finished is not None:
        facts, folder, batches = Facts(folder=str(finished.path), finished=True), finished, None
    else:
        folder = RunFolder.choose(config, earlier=earlier)
        world.lasting.set(FOLDER, str(folder.path))
        batches = _open_data(config)
        cut = _choose_cut(config, blueprint, device, folder)
        facts = Facts(
            folder=str(folder.path),
            steps_per_epoch=batches.steps_per_epoch,
            smallest_batch=batches.smallest_batch,
            cut=cut,
            start=asdict(find_start(folder, config, blueprint, cut)),
        )
    control.put("facts", asdict(facts))
    return Prepared(facts=facts, folder=folder, batches=batches)


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


def _open_data(config: TrainConfig) -> BatchStream:
    dataset = load_dataset(config.data, root=config.data_root, seed=config.seed)
    if config.train_samples is not None:
        dataset = dataset.first(config.train_samples)
    return BatchStream(
        dataset, batch_size=config.batch_size, seed=config.seed, drop_last=config.drop_last
    )


def _choose_cut(
    config: TrainConfig, blueprint: Blueprint, device: torch.device, folder: RunFolder
) -> str:
    """Where to cut, for all ranks: measured by this one where the options ask for it."""
    if config.balance != "count" and folder.goes_on:
        measured = folder.config().cut  # another measurement need not come out the same
        if measured is not None:
            return measured
    stopwatch = Stopwatch(device=device)
    cut = blueprint.partitioned(config, lambda: blueprint.cost_model(config, stopwatch))
    return to_text(cut.chain, cut.cuts)
