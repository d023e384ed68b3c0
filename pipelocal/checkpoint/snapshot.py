"""Snapshots of a run: what lies in its folder, and which of them can be trusted.

::

    runs/first/
      snapshots/
        step-00000200/
          stage-1.pt       all that stage 1 needs to go on after batch 200
          stage-2.pt
          manifest.json    written last, with the checksum of every file: without it there is no snapshot
        step-00000400/
          ...
      stages/              the run's end: a snapshot like the others
        ...

Every stage writes its own file when the marker on the stream reaches it, so the files of one snapshot
are written at different times, and together are the state after the same batch.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shutil
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipelocal.errors import UserError
from pipelocal.system.files import write_atomically
from pipelocal.system.strict_json import to_json

MANIFEST = "manifest.json"
FORMAT = 4
"""Version of what the files hold."""


class BadSnapshot(Exception):
    """A snapshot that cannot be used; the text says which file, and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class SavedFile:
    """A stage's file, as it was written."""

    stage: int
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The last head's figures in the newest evaluation."""

    step: int
    """Training batches before it."""
    accuracy: float | None
    loss: float | None


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """Which batches make an epoch, from some epoch on."""

    steps_per_epoch: int
    epochs_before: int = 0
    """Epochs before the first of these, which had other batches."""
    steps_before: int = 0
    """Training batches in them."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a snapshot is of."""

    step: int
    """Training batches before it, the same for every stage."""
    cut: list[str]
    """Where the model was cut: names of the units with which the stages after the first begin."""
    identity: dict[str, Any]
    """The options on which the bits depend."""
    epochs: Epochs
    evaluated: Evaluated | None
    """None before the first evaluation."""
    files: tuple[SavedFile, ...]
    """One for every stage, in order."""

    @property
    def after_evaluation(self) -> bool:
        """Whether these very weights were evaluated, so that the evaluation need not come again."""
        return self.evaluated is not None and self.evaluated.step == self.step

    @property
    def quality(self) -> tuple[float, float] | None:
        """Greater is better: the accuracy, then the loss; None if these weights were not evaluated."""
        found = self.evaluated
        if found is None or found.step != self.step or found.accuracy is None:
            return None
        return found.accuracy, -math.inf if found.loss is None else -found.loss


class SnapshotFolder:
    """The snapshots of one run.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "snapshots"
        self.end = run / "stages"
        """Where the snapshot of the run's end is."""

    def complete(self, manifest: Manifest, *, keep: int) -> None:
        """Make a snapshot count, now that all its files are there; then drop those that are not needed.

        Args:
            manifest: names the files.
            keep: how many of the newest snapshots stay, beside the best one.
        """
        write_manifest(self.at(manifest.step), manifest)
        steps = self.steps()
        self._keep_only({*steps[:keep], *self._best(steps)}, before=manifest.step)

    def complete_end(self, manifest: Manifest, *, keep: int) -> None:
        """Likewise the run's end, which is the newest of all."""
        write_manifest(self.end, manifest)
        steps = self.steps()
        best = self._best(steps, other=manifest)
        self._keep_only({*steps[: max(0, keep - 1)], *best}, before=manifest.step + 1)

    def steps(self) -> list[int]:
        """The steps of all snapshots that were completed, the newest first; not verified, without the end."""
        found = (step_of(path.parent) for path in self.path.glob(f"step-*/{MANIFEST}"))
        return sorted((step for step in found if step is not None), reverse=True)

    def folders(self) -> list[Path]:
        """The folders of all snapshots that were completed, the newest first; the end is one, if it came."""
        end = [self.end] if (self.end / MANIFEST).exists() else []
        return end + [self.at(step) for step in self.steps()]

    def at(self, step: int) -> Path:
        """The folder of a snapshot on the way."""
        return self.path / f"step-{step:08d}"

    def _best(self, steps: list[int], *, other: Manifest | None = None) -> list[int]:
        """The step of the best snapshot; none if the other is as good, or nothing was evaluated."""
        best, quality = [], None if other is None else other.quality
        for step in steps:  # of equals the newest
            try:
                own = read_manifest(self.at(step)).quality
            except BadSnapshot:
                continue
            if own is not None and (quality is None or own > quality):
                best, quality = [step], own
        return best

    def forget_after(self, step: int) -> None:
        """Drop what a run that goes on after so many batches could not use: it will come again."""
        for later in self.steps():
            if later > step:
                _drop(self.at(later))
        if (self.end / MANIFEST).exists():
            (self.end / MANIFEST).unlink()

    def _keep_only(self, kept: set[int], *, before: int) -> None:
        for path in self.path.glob("step-*"):
            step = step_of(path)
            # One that another rank has just begun is later than this one.
            if step is not None and step < before and step not in kept:
                _drop(path)


def _drop(folder: Path) -> None:
    # The manifest first: half of a snapshot must not look like one.
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def save_stage(folder: Path, stage: int, state: dict[str, Any]) -> SavedFile:
    """Write one stage's part of a snapshot.

    Raises:
        UserError: it cannot be written, as on a full disk.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    write_atomically(folder / _stage_name(stage), content)
    digest = hashlib.sha256(content).hexdigest()
    return SavedFile(stage=stage, size=len(content), sha256=digest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make a snapshot count.

    Raises:
        UserError: it cannot be written.
    """
    content = {"format": FORMAT, **asdict(manifest)}
    write_atomically(folder / MANIFEST, (to_json(content, indent=2) + "\n").encode())


def verify(folder: Path) -> Manifest:
    """The manifest of a snapshot all of whose files are as they were written.

    Raises:
        BadSnapshot: something is missing, or is not what was written.
    """
    manifest = read_manifest(folder)
    for file in manifest.files:
        read_checked(folder, file)
    return manifest


def read_checked(folder: Path, file: SavedFile) -> bytes:
    """The content of a stage's file, which is as it was written.

    Raises:
        BadSnapshot: it is not.
    """
    path = folder / _stage_name(file.stage)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadSnapshot(f"{path} cannot be read ({error.strerror or error})") from error
    if len(content) != file.size:
        size = len(content)
        raise BadSnapshot(f"{path} is damaged ({size} bytes where {file.size} were written)")
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise BadSnapshot(f"{path} is damaged (changed after it was written, by its checksum)")
    return content


def load_stage(folder: Path, stage: int) -> dict[str, Any]:
    """A stage's part of a snapshot, on the CPU.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / _stage_name(stage)
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:  # rank 0 has found it
        raise UserError(
            f"{path} is not there for {socket.gethostname()}: let all ranks share the folder"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): give another snapshot") from error
    return state


def read_manifest(folder: Path) -> Manifest:
    """What a snapshot says that it is; its files are not looked at.

    Raises:
        BadSnapshot: there is none, or it makes no sense.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("another version's format")
        files = tuple(SavedFile(**file) for file in content.pop("files"))
        evaluated = content.pop("evaluated")
        manifest = Manifest(
            files=files,
            epochs=Epochs(**content.pop("epochs")),
            evaluated=None if evaluated is None else Evaluated(**evaluated),
            **content,
        )
    except OSError as error:
        raise BadSnapshot(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadSnapshot(f"{path} is no manifest of a snapshot ({reason})") from error
    stages = [file.stage for file in manifest.files]
    if not stages or stages != list(range(1, len(stages) + 1)):
        raise BadSnapshot(f"{path} names the stages {stages}")
    if step_of(folder) not in (None, manifest.step):
        raise BadSnapshot(f"{path} is of step {manifest.step}")
    return manifest


def step_of(folder: Path) -> int | None:
    """The step of a snapshot's folder, by its name; None if that is of something else."""
    match = re.fullmatch(r"step-(\d{8,})", folder.name)
    return None if match is None else int(match[1])


def _stage_name(stage: int) -> str:
    return f"stage-{stage}.pt"
