"""Where a run begins: anew, or from a snapshot of a run that ended before its time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelocal.checkpoint.description import Description, changed_code, data_differences
from pipelocal.config import TrainConfig
from pipelocal.config.named import plain_references
from pipelocal.config.option_name import option_name
from pipelocal.errors import UserError

NOT_OF_THE_BITS = {
    *("out", "config", "plain", "timeout", "trace", "debug_transfers", "log_every", "data_root"),
    *("votes", "resume", "snapshot_every", "snapshot_minutes", "keep_snapshots"),
    *("device", "edge", "window"),
    *("stages", "balance", "cut", "memory_limit", "device_speeds"),
    *("replicas", "replicate", "start_timeout", "interface", "accept_changes"),
}
"""Options that may differ: they say where, how fast and how loudly. (Another cut is another training, but
one can go on with it.)"""

FITTING = {"model", "optimizer", "head", "bp_free"}
"""Options without which the weights of another run, or what its optimizer knows, cannot be taken over."""

PLACE = ("data", "train_samples", "batch_size", "drop_last", "seed")
"""Options that say which samples are in which batch."""

Tell = Callable[[str], None]


def identity(config: TrainConfig) -> dict[str, Any]:
    """The options on which the bits of a run depend."""
    plain = asdict(config) | plain_references(config)
    options = {k: v for k, v in plain.items() if k not in NOT_OF_THE_BITS}
    # Replicas count by how many batches make an update (the same up to rounding), and a round.
    options["accumulate"] = config.batches_an_update
    rounds_matter = config.objective == "sgr" or config.sync_batchnorm
    options["replicas"] = config.together if rounds_matter else 1
    return options


def check_same_run(theirs: dict[str, Any], config: TrainConfig, run: Path) -> None:
    """Refuse to go on with another run than the options ask for.

    Args:
        theirs: what :func:`identity` gave of that run's options.
        config: the options now.
        run: that run's folder.

    Raises:
        UserError: names the options that differ.
    """
    differing = differences(theirs, config)
    if differing:
        raise UserError(
            f"--out {run} holds an unfinished run with other options: {_listed(differing)}: give the "
            f"same to go on with it, or another --out"
        )


def check_fitting(theirs: dict[str, Any], config: TrainConfig, snapshot: Path, tell: Tell) -> None:
    """Refuse to begin from a snapshot that does not fit; tell what else differs.

    Args:
        theirs: what :func:`identity` gave of the other run's options.
        config: the options now.
        snapshot: where it is.
        tell: takes a line.

    Raises:
        UserError: names the options that must be the same.
    """
    differing = differences(theirs, config)
    wrong = {name: text for name, text in differing.items() if name in FITTING}
    if wrong:
        raise UserError(
            f"--resume {snapshot} is of a run with which these options do not go together: "
            f"{_listed(wrong)}: give the same"
        )
    if differing:
        tell(f"options that differ from those of that run: {_listed(differing)}")


def check_unchanged(
    then: Description,
    now: Description,
    config: TrainConfig,
    run: Path,
    tell: Tell,
    *,
    same_data: bool,
) -> None:
    """Refuse to go on with a run whose model or data are not what they were, unless told to go ahead.

    Args:
        then: what the run was made of.
        now: what its options name now.
        config: the options now.
        run: that run's folder.
        tell: takes a line.
        same_data: whether the options name the same data as then.

    Raises:
        UserError: names what changed.
    """
    changed = [f"the model ({what})" for what in then.model.differences(now.model)]
    changed += [f"{option} (its code)" for option in changed_code(then.references, now.references)]
    if same_data:
        changed += [f"the data ({what})" for what in data_differences(then.data, now.data)]
    if changed and not config.accept_changes:
        raise UserError(
            f"since {run} began, these have changed: {'; '.join(changed)}: give --accept-changes to go on "
            f"all the same, or begin another run"
        )
    if changed:
        tell(f"changed since {run} began, and accepted: {'; '.join(changed)}")
    others = [
        f"{package} ({version} then, {now.versions.get(package)} now)"
        for package, version in then.versions.items()
        if version != now.versions.get(package)
    ]
    if others:
        tell(f"other versions than when {run} began: {', '.join(others)}: the bits may differ")


def differences(theirs: dict[str, Any], config: TrainConfig) -> dict[str, str]:
    """The options on which the bits depend that differ, by name: what they are, there and here."""
    # Through JSON, as a manifest's went.
    before, now = (json.loads(json.dumps(options)) for options in (theirs, identity(config)))
    return {
        name: f"{option_name(name)} ({before.get(name)} there, {now.get(name)} here)"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }


def _listed(differing: dict[str, str]) -> str:
    return "; ".join(differing.values())
