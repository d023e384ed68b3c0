"""Where a run begins: anew, or from a snapshot of a run that ended before its time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelocal.checkpoint.snapshot import BadSnapshot, Manifest, SnapshotFolder
from pipelocal.config import TrainConfig
from pipelocal.config.option_name import option_name
from pipelocal.errors import UserError

NOT_OF_THE_BITS = {
    *("out", "config", "plain", "timeout", "trace", "debug_transfers", "log_every", "data_root"),
    *("resume", "snapshot_every", "snapshot_minutes", "keep_snapshots", "device", "edge", "window"),
    *("stages", "balance", "cut", "memory_limit", "device_speeds"),
}
"""Options that may differ: they say where, how fast and how loudly. (Another cut is another training, but
one can go on with it.)"""

Tell = Callable[[str], None]


def identity(config: TrainConfig) -> dict[str, Any]:
    """The options on which the bits of a run depend."""
    return {k: v for k, v in asdict(config).items() if k not in NOT_OF_THE_BITS}


def newest_good(run: Path, tell: Tell) -> Manifest | None:
    """The newest snapshot of a run all of whose files are as they were written; None without any.

    Args:
        run: the run's folder.
        tell: takes a line for each snapshot that cannot be used.
    """
    folder = SnapshotFolder(run)
    for step in folder.steps():
        try:
            return folder.verify(step)
        except BadSnapshot as error:
            tell(f"a snapshot is left out: {error}")
    return None


def check_same_run(theirs: dict[str, Any], config: TrainConfig, run: Path) -> None:
    """Refuse to go on with another run than the options ask for.

    Args:
        theirs: what :func:`identity` gave of that run's options.
        config: the options now.
        run: that run's folder.

    Raises:
        UserError: names the options that differ.
    """
    # Through JSON, as a manifest's went.
    before, now = (json.loads(json.dumps(options)) for options in (theirs, identity(config)))
    differing = [
        f"{option_name(name)} ({before.get(name)} there, {now.get(name)} here)"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise UserError(
            f"--out {run} holds an unfinished run with other options: {'; '.join(differing)}: give the "
            f"same to go on with it, or another --out"
        )
