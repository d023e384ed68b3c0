"""Picks a snapshot of a run: the newest good one, the best, or the one that a user names."""

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
"""Name that stands for the best snapshot."""
WEIGHTS = ("body", "head", "averaged")
"""Parts of a stage's state that hold weights, without the optimizer's state."""
MORE = {"objective", "unsaved"}
"""Those that not all states have."""
ATTEMPTS = 5
"""Attempts to read a snapshot of a running run, which may replace it by a newer one meanwhile."""

Tell = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A snapshot that can be trusted."""

    run: Path
    """The run's folder."""
    folder: Path
    """The snapshot's folder."""
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of a snapshot, without what further training needs."""

    chosen: Chosen
    states: list[dict[str, Any]]
    """Per stage: ``body``, ``head``, and ``averaged``, which holds the averaged two or is None."""


def newest_good(run: Path, tell: Tell) -> Chosen | None:
    """Find the newest snapshot of a run whose files are all intact; None if there is none.

    Args:
        run: the run's folder.
        tell: takes a line for each snapshot that cannot be used.
    """
    return _first_good(run, SnapshotFolder(run).folders(), _verified, tell)


def named_snapshot(path: Path, tell: Tell) -> Chosen | None:
    """Find the snapshot that a user names; None if there is none.

    Args:
        path: a run's folder, for its newest good snapshot; a snapshot's folder; or ``best`` in place
            of that.
        tell: takes a line for each snapshot that cannot be used.

    Raises:
        UserError: the named snapshot cannot be used.
    """
    return _named(path, _verified, tell)


def read_weights(path: Path, tell: Tell) -> Weights | None:
    """Read the weights of :func:`named_snapshot`, or the final ones of a finished run.

    They are read at once, because a running run deletes snapshots that it has replaced.

    Raises:
        UserError: what was named, or a run's end, cannot be used.
    """
    return _named(path, _read, tell, finished=(path / "summary.json").exists())


def verified_weights(path: Path, tell: Tell) -> Chosen | None:
    """Find the snapshot that :func:`read_weights` reads, and check that its files are intact.

    Raises:
        UserError: what was named, or a run's end, cannot be used.
    """
    return _named(path, _verified, tell, finished=(path / "summary.json").exists())


def run_of(path: Path) -> Path:
    """Return the run's folder, from that folder or the folder of a snapshot."""
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
    """Return the snapshots whose weights were evaluated, best first."""
    found = []
    for folder in folders:
        try:
            quality = read_manifest(folder).quality
        except BadSnapshot:
            continue
        if quality is not None:
            found.append((quality, folder))
    # Among equals the newest comes first.
    return [folder for _, folder in sorted(found, key=lambda each: each[0], reverse=True)]


def _first_good(
    run: Path, folders: Iterable[Path], read: Callable[[Path, Path], T], tell: Tell
) -> T | None:
    for folder in folders:
        try:
            return read(run, folder)
        except BadSnapshot as error:
            if (folder / MANIFEST).exists():  # otherwise it was deleted meanwhile
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
            states.append({n: state[n] for n in (*WEIGHTS, *(MORE & state.keys()))})
        except (RuntimeError, pickle.UnpicklingError, KeyError) as error:
            raise BadSnapshot(f"{folder} holds no stage's state ({error})") from error
    return Weights(chosen=Chosen(run=run, folder=folder, manifest=manifest), states=states)
