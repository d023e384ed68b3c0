"""Which snapshot of a run is taken: its newest good one, its best, or the one that a user names."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipelocal.checkpoint.snapshot import (
    MANIFEST,
    BadSnapshot,
    Manifest,
    SnapshotFolder,
    read_checked,
    read_manifest,
    step_of,
    verify,
)
from pipelocal.errors import UserError

BEST = "best"
"""In place of a snapshot's name: the best one."""
WEIGHTS = ("body", "head", "averaged")
"""Of a stage's state, what is kept of it: not what its optimizer knows."""
ATTEMPTS = 5
"""To read a snapshot of a run that goes on, and drops it meanwhile for a newer one."""

Tell = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A snapshot that can be trusted."""

    run: Path
    """The run's folder."""
    folder: Path
    """The snapshot's."""
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What is left of a snapshot for those who do not train on."""

    chosen: Chosen
    states: list[dict[str, Any]]
    """Of every stage: ``body`` and ``head``, and ``averaged``, which holds the same or is None."""


def newest_good(run: Path, tell: Tell) -> Chosen | None:
    """The newest snapshot of a run all of whose files are as they were written; None without any.

    Args:
        run: the run's folder.
        tell: takes a line for each snapshot that cannot be used.
    """
    return _first_good(run, SnapshotFolder(run).folders(), _verified, tell)


def named_snapshot(path: Path, tell: Tell) -> Chosen | None:
    """The snapshot that a user names; None if there is none.

    Args:
        path: a run's folder, for its newest good snapshot; that of one snapshot; or ``best`` in the
            place of one.
        tell: takes a line for each snapshot that cannot be used.

    Raises:
        UserError: the one that was named cannot be used.
    """
    return _named(path, _verified, tell)


def read_weights(path: Path, tell: Tell) -> Weights | None:
    """The weights of what :func:`named_snapshot` finds, and of a finished run those of its end.

    They are read at once, since a run that goes on drops what it has replaced.

    Raises:
        UserError: what was named, or a run's end, cannot be used.
    """
    return _named(path, _read, tell, finished=(path / "summary.json").exists())


def run_of(path: Path) -> Path:
    """The folder of the run, of which a user names that or a snapshot."""
    return path.parent.parent if _names_snapshot(path) else path


def _names_snapshot(path: Path) -> bool:
    return path.parent.name == "snapshots" and (path.name == BEST or step_of(path) is not None)


def _named(
    path: Path, read: Callable[[Path, Path], T], tell: Tell, *, finished: bool = False
) -> T | None:
    run = run_of(path)
    snapshots = SnapshotFolder(run)
    if finished or (_names_snapshot(path) and path.name != BEST):
        try:
            return read(run, snapshots.end if finished else path)
        except BadSnapshot as error:
            mend = "give another snapshot, or train the run again"
            if isinstance(error.__cause__, OSError):
                mend = "take the run folder with all its files"
            raise UserError(f"{error}: {mend}") from error
    for _ in range(ATTEMPTS):
        folders = snapshots.folders()
        found = _first_good(run, _best_first(folders) if run != path else folders, read, tell)
        if found is not None or folders == snapshots.folders():
            return found
    return None


def _best_first(folders: list[Path]) -> list[Path]:
    """Those of weights that were evaluated."""
    found = []
    for folder in folders:
        try:
            quality = read_manifest(folder).quality
        except BadSnapshot:
            continue
        if quality is not None:
            found.append((quality, folder))
    # Of equals the newest, which comes first.
    return [folder for _, folder in sorted(found, key=lambda each: each[0], reverse=True)]


def _first_good(
    run: Path, folders: Iterable[Path], read: Callable[[Path, Path], T], tell: Tell
) -> T | None:
    for folder in folders:
        try:
            return read(run, folder)
        except BadSnapshot as error:
            if (folder / MANIFEST).exists():  # or it was dropped meanwhile
                tell(f"a snapshot is left out: {error}")
    return None


def _verified(run: Path, folder: Path) -> Chosen:
    return Chosen(run=run, folder=folder, manifest=verify(folder))


def _read(run: Path, folder: Path) -> Weights:
    manifest = read_manifest(folder)
    states = []
    for file in manifest.files:
        content = read_checked(folder, file)
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            states.append({name: state[name] for name in WEIGHTS} | _own(state))
        except (RuntimeError, pickle.UnpicklingError, KeyError) as error:
            raise BadSnapshot(f"{folder} holds no stage's state ({error})") from error
    return Weights(chosen=Chosen(run=run, folder=folder, manifest=manifest), states=states)


def _own(state: dict[str, Any]) -> dict[str, Any]:
    """The parameters of an objective, which few have."""
    return {"objective": state["objective"]} if "objective" in state else {}
