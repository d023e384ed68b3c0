"""Finds where a run starts, from scratch or from a snapshot, and restores its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelocal.checkpoint.description import Description
from pipelocal.checkpoint.pick_snapshot import named_snapshot, newest_good
from pipelocal.checkpoint.repartition import StageState, repartitioned
from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.checkpoint.snapshot import (
    Epochs,
    Manifest,
    SnapshotFolder,
    load_stage,
)
from pipelocal.errors import UserError
from pipelocal.partition import Cut, from_names, names_of
from pipelocal.pipeline.timetable import Timetable
from pipelocal.pipeline.worker import Worker
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.identity import (
    PLACE,
    check_fitting,
    check_same_run,
    check_unchanged,
    differences,
    identity,
)
from pipelocal.run.options import RunOptions
from pipelocal.run.spec import Spec
from pipelocal.stage.stage import Stage
from pipelocal.stage.state import load_stage_weights, parameter_names, stage_state
from pipelocal.system.paths import check_path
from pipelocal.system.streams import tell


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run starts."""

    step: int = 0
    """Training batches before the snapshot to continue from; 0 to start from scratch."""
    snapshot: str = ""
    """The snapshot's folder."""
    cut: list[str] = field(default_factory=list)
    """The cut in that snapshot: names of the units with which stages begin."""
    evaluated: bool = False
    """Whether the evaluation after that batch, if any, has been done."""
    epochs_before: int = 0
    """See :class:`~pipelocal.checkpoint.snapshot.Epochs`."""
    steps_before: int = 0
    another: bool = False
    """Whether the snapshot is of another run, or of another cut."""


def find_start(
    folder: RunFolder,
    spec: Spec,
    blueprint: Blueprint,
    cut: list[str],
    description: Description,
    steps_per_epoch: int,
) -> Start:
    """Find the newest good snapshot of an unfinished run, or the one that ``--resume`` names.

    Rank 0 calls this; it reports what it found on standard error.

    Args:
        folder: the run's folder.
        spec: the run.
        blueprint: the model.
        cut: names of the units before which the model will be cut.
        description: what the options refer to now.
        steps_per_epoch: batches per epoch of the data set.

    Raises:
        UserError: the folder holds another run or one still in progress, or the snapshot is unusable.
    """
    chosen, own = None, folder.goes_on
    if own:
        folder.lock()
        check_same_run(identity(spec, folder.options()), spec, folder.path)
        chosen = newest_good(folder.path, tell)
    if chosen is not None:
        check_same_run(chosen.manifest.identity, spec, folder.path)
        then = Description.read(chosen.run)
        check_unchanged(then, description, spec, chosen.run, tell, same_data=True)
        tell(f"going on after batch {chosen.manifest.step} of {chosen.run}")
    elif (resume := spec.options.resume) not in ("auto", "never"):
        own, named = False, Path(resume)
        check_path("--resume", named)
        chosen = named_snapshot(named, tell)
        if chosen is None:
            raise UserError(
                f"--resume {named} holds no snapshot that can be used: give auto, never, the folder of a "
                f"run that took snapshots, or that of one of them"
            )
        check_fitting(chosen.manifest.identity, spec, named, tell)
        then, differing = (
            Description.read(chosen.run),
            differences(chosen.manifest.identity, spec),
        )
        _check_same_network(blueprint, differing)
        same_data = not {"data", "train_samples", "seed"} & differing.keys()
        check_unchanged(then, description, spec, chosen.run, tell, same_data=same_data)
        tell(f"beginning after batch {chosen.manifest.step} of {chosen.run}")
    else:
        if own:
            tell(f"there is no snapshot in {folder.path}: beginning anew")
        return Start()
    manifest = chosen.manifest
    epochs = _epochs(manifest, spec, steps_per_epoch)
    plan = spec.timetable(**asdict(epochs))
    if not own and manifest.step >= plan.total_steps:
        raise UserError(
            f"--resume {spec.options.resume}: the snapshot is of batch {manifest.step}, and --epochs and "
            f"--max-steps end the training after {max(0, plan.total_steps)}: "
            f"{_more(spec.options, plan, manifest)}"
        )
    if manifest.cut != cut and blueprint.network is not blueprint.chain:
        raise UserError(
            f"--objective {spec.text['objective']} puts into units what is of one cut alone, and the "
            f"snapshot in {chosen.run} is of --cut {','.join(manifest.cut)}: give the same, or begin "
            f"another run"
        )
    objective = {"objective", "objective_options"} & differences(manifest.identity, spec).keys()
    if manifest.cut != cut or objective:
        _check_everything_has_a_place(blueprint, chosen.folder, len(manifest.files))
    if manifest.cut != cut:
        _tell_new_heads(blueprint, manifest.cut, cut)
    return Start(
        step=manifest.step,
        snapshot=str(chosen.folder),
        cut=manifest.cut,
        evaluated=manifest.after_evaluation and manifest.cut == cut,
        epochs_before=epochs.epochs_before,
        steps_before=epochs.steps_before,
        another=not own or manifest.cut != cut,
    )


def _check_same_network(blueprint: Blueprint, differing: Mapping[str, str]) -> None:
    """Refuse another objective, or other options of it, if it puts something into units."""
    others = [differing[name] for name in ("objective", "objective_options") if name in differing]
    if others and blueprint.network is not blueprint.chain:
        raise UserError(
            f"--resume: the network of this objective is another than the snapshot's: {'; '.join(others)}: "
            f"give the same, or the plain weights by --init"
        )


def _check_everything_has_a_place(blueprint: Blueprint, snapshot: Path, stages: int) -> None:
    """Refuse a snapshot with weights that no unit has here, such as another objective's encoders."""
    known = set[str]()
    for unit in blueprint.network.units:
        assert unit.layout is not None, "the chain was not tried"
        known |= {unit.whole_name(name) for name, *_ in unit.layout}
    for number in range(1, stages + 1):
        lost = sorted(load_stage(snapshot, number, mmap=True)["body"].keys() - known)
        if lost:
            raise UserError(
                f"--resume: {snapshot}: stage {number} has {lost[0]} there, and no unit has it here: give "
                f"the same --objective and --objective-options, or plain weights by --init"
            )


def _more(options: RunOptions, plan: Timetable, manifest: Manifest) -> str:
    """Return the option that would train further."""
    epochs, steps = plan.epoch_of_last(manifest.step) + 1, manifest.step
    more = []
    if epochs >= options.epochs:
        more.append(f"--epochs {2 * epochs}")
    if options.max_steps is not None and options.max_steps <= steps:
        more.append(f"--max-steps {2 * steps}")
    return f"give more, such as {' '.join(more)}"


def _epochs(manifest: Manifest, spec: Spec, steps_per_epoch: int) -> Epochs:
    """Return how batches form the coming epochs: as before, or from here on by the new options.

    Raises:
        UserError: the new options would split an epoch that is partly done.
    """
    old = manifest.epochs
    now = spec.timetable(steps_per_epoch).steps_per_epoch
    differing = differences(manifest.identity, spec)
    other = [differing[name] for name in PLACE if name in differing]
    if not other and now == old.steps_per_epoch:
        return replace(old, steps_per_epoch=steps_per_epoch)
    epochs, rest = divmod(manifest.step - old.steps_before, old.steps_per_epoch)
    if rest:
        raise UserError(
            f"the snapshot of batch {manifest.step} is of the middle of an epoch, which other batches "
            f"would not complete: {'; '.join(other) or '--replicas'}: give the same, or a snapshot of an "
            f"epoch's end"
        )
    return Epochs(
        steps_per_epoch=steps_per_epoch,
        epochs_before=old.epochs_before + epochs,
        steps_before=manifest.step,
    )


def forget_what_comes_again(folder: RunFolder, start: Start) -> None:
    """Delete a run's records and snapshots past the starting point, before anything writes new ones."""
    folder.cut_metrics(start.step, evaluated=start.evaluated)
    snapshots = SnapshotFolder(folder.path)
    if Path(start.snapshot) != snapshots.end:
        snapshots.forget_after(start.step)


def _tell_new_heads(blueprint: Blueprint, old: list[str], new: list[str]) -> None:
    before, now = (_heads(blueprint, cut) for cut in (old, new))
    anew = [end for end in now if end not in before or before[end] != now[end]]
    gone = [end for end in before if end not in now]
    tell(
        f"another cut: every unit goes on with all that was known of it; heads that begin anew: "
        f"{_listed(anew)}; heads that have no place any more: {_listed(gone)}"
    )


def _heads(blueprint: Blueprint, names: list[str]) -> dict[str, str | None]:
    """Return the head behind each last unit of a stage; its form may depend on the number of stages."""
    there = blueprint.cut_at(names)
    numbers = range(1, there.stages + 1)
    return {there.unit_names(number)[-1]: there.head_name(number) for number in numbers}


def _cuts(blueprint: Blueprint, names: list[str]) -> list[Cut]:
    return from_names(blueprint.chain, names, what="the snapshot's cut")


def _listed(ends: list[str]) -> str:
    return ", ".join(f"behind {end}" for end in ends) or "none"


def load_snapshot(
    blueprint: Blueprint,
    worker: Worker,
    start: Start,
    plan: Timetable,
    *,
    replica: int = 0,
    replicas: int = 1,
) -> None:
    """Restore a stage and its worker from a snapshot, also one with other cuts.

    Raises:
        UserError: a stage's file cannot be read or does not fit.
    """
    stage = worker.stage
    if start.cut == names_of(blueprint.chain, blueprint.cuts):
        state = _load(start, stage.number)
        _check_same_names(blueprint, stage, state["names"], start)
        worker.load_state_dict(state["worker"], replica=replica, replicas=replicas)
    else:
        state = _from_other_cut(blueprint, stage, start)
        worker.records.continue_from(start.step)
    if replicas > 1 and state["training"]["batches"]:
        raise UserError(
            f"the snapshot of batch {start.step} has gradients of {state['training']['batches']} batch(es) "
            f"that are no update yet, which replicas cannot go on with: give another one, or go on in one "
            f"process"
        )
    number = stage.number
    if state["frozen_at"] == 0 and number < blueprint.stages and not blueprint.silent(number):
        raise UserError(
            f"--resume: the units of stage {number} ({blueprint.units(number)}) are of a stage that never "
            f"trained and has no head that learnt: keep it so by --freeze-stage {number}:0, or give --init "
            f"in place of --resume, to train it"
        )
    load_stage_weights(blueprint.network, blueprint.cuts[stage.number - 1], stage, state)
    steps, frozen_at = state["steps"], state["frozen_at"]
    updates = plan.updates_before(steps) if start.another else None
    stage.load_training_state(state["training"], steps=steps, frozen_at=frozen_at, updates=updates)
    worker.records.began_at = steps


def _check_same_names(
    blueprint: Blueprint, stage: Stage, saved: Sequence[str], start: Start
) -> None:
    own = parameter_names(blueprint.network, blueprint.cuts[stage.number - 1], stage)
    other = sorted(set(saved) ^ set(own))
    if other and saved:  # a frozen stage trained none
        where = "there, not here" if other[0] in saved else "here, not there"
        raise UserError(
            f"{start.snapshot}: stage {stage.number} has other parameters, such as {other[0]} ({where}): "
            f"give the same --objective and --objective-options, or plain weights by --init"
        )


def _load(start: Start, number: int) -> dict[str, Any]:
    state = load_stage(Path(start.snapshot), number)
    state["training"]["optimizer"] = state.pop("optimizer")
    return state


def _from_other_cut(blueprint: Blueprint, stage: Stage, start: Start) -> dict[str, Any]:
    """Assemble a stage's state from the states of differently cut stages."""
    saved = []
    for number, old in enumerate(_cuts(blueprint, start.cut), start=1):
        units = tuple(unit.name for unit in blueprint.chain.units[old.start : old.stop])
        saved.append(StageState(units=units, state=_load(start, number)))
    chain, cut = blueprint.network, blueprint.cuts[stage.number - 1]
    fresh = stage_state(chain, cut, stage) | {"names": parameter_names(chain, cut, stage)}
    names = blueprint.unit_names(stage.number)
    before, now = (_heads(blueprint, each) for each in (start.cut, blueprint.cut_names))
    keep = names[-1] in before and before[names[-1]] == now[names[-1]]
    return repartitioned(saved, names, fresh, keep_head=keep)
