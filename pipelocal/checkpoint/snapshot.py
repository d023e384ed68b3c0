"""Snapshots of a run: their files, and the check that they are intact.

::

    runs/first/
      snapshots/
        step-00000200/
          stage-1.pt       all that stage 1 needs to continue after batch 200
          stage-2.pt
          manifest.json    written last, with the checksum of every file: without it there is no snapshot
        step-00000400/
          ...
      stages/              the run's end: a snapshot like the others
        ...

Every stage writes its own file when the marker on the stream reaches it, so the files of one snapshot
are written at different times, but together hold the state after the same batch.
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
"""Version of the file format."""


class BadSnapshot(Exception):
    """A snapshot cannot be used; the text names the file and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class SavedFile:
    """Describes a stage's file as it was written."""

    stage: int
    size: int
    """Size in bytes."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The last head's figures in the newest evaluation."""

    step: int
    """Training batches before the evaluation."""
    loss: float | None
    metric: str
    """Name of the task's first metric."""
    value: float | None
    """Its value."""
    higher_is_better: bool = True
    """Whether greater values are better."""

    @classmethod
    def of_json(cls, content: dict[str, Any] | None) -> Evaluated | None:
        """Return the inverse of ``asdict``; earlier versions knew only accuracy."""
        if content is None:
            return None
        if "accuracy" in content:
            content = {**content, "metric": "accuracy", "value": content["accuracy"]}
            del content["accuracy"]
        return cls(**content)


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """Says which batches form an epoch, from some epoch on."""

    steps_per_epoch: int
    epochs_before: int = 0
    """Earlier epochs, which had another number of batches."""
    steps_before: int = 0
    """Training batches in those epochs."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Describes a snapshot."""

    step: int
    """Training batches before the snapshot, the same for every stage."""
    cut: list[str]
    """Where the model was cut: names of the units with which the stages after the first begin."""
    identity: dict[str, Any]
    """The options that affect the bits of the run."""
    epochs: Epochs
    evaluated: Evaluated | None
    """Figures of the newest evaluation; None before the first one."""
    files: tuple[SavedFile, ...]
    """The file of every stage, in order."""

    @property
    def after_evaluation(self) -> bool:
        """Whether exactly these weights were evaluated, so that no evaluation needs to be repeated."""
        return self.evaluated is not None and self.evaluated.step == self.step

    @property
    def quality(self) -> tuple[float, float] | None:
        """Quality, where greater is better: the task's first metric, then the loss.

        None if the weights were not evaluated.
        """
        found = self.evaluated
        if found is None or found.step != self.step or found.value is None:
            return None
        value = found.value if found.higher_is_better else -found.value
        return value, -math.inf if found.loss is None else -found.loss


class SnapshotFolder:
    """The snapshots of one run.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "snapshots"
        self.end = run / "stages"
        """Folder of the run's final snapshot."""

    def complete(self, manifest: Manifest, *, keep: int) -> None:
        """Mark a snapshot as complete once all its files exist; then delete those no longer needed.

        Args:
            manifest: the manifest, which lists the files.
            keep: number of newest snapshots to keep, besides the best one.
        """
        write_manifest(self.at(manifest.step), manifest)
        steps = self.steps()
        self._keep_only({*steps[:keep], *self._best(steps)}, before=manifest.step)

    def complete_end(self, manifest: Manifest, *, keep: int) -> None:
        """Mark the final snapshot as complete, like :meth:`complete`."""
        write_manifest(self.end, manifest)
        steps = self.steps()
        best = self._best(steps, other=manifest)
        self._keep_only({*steps[: max(0, keep - 1)], *best}, before=manifest.step + 1)

    def steps(self) -> list[int]:
        """Return the steps of complete snapshots, newest first; unverified, and without the final one."""
        found = (step_of(path.parent) for path in self.path.glob(f"step-*/{MANIFEST}"))
        return sorted((step for step in found if step is not None), reverse=True)

    def folders(self) -> list[Path]:
        """Return the folders of complete snapshots, newest first, including the final one if it exists."""
        end = [self.end] if (self.end / MANIFEST).exists() else []
        return end + [self.at(step) for step in self.steps()]

    def at(self, step: int) -> Path:
        """Return the folder of the snapshot after ``step`` batches."""
        return self.path / f"step-{step:08d}"

    def _best(self, steps: list[int], *, other: Manifest | None = None) -> list[int]:
        """Return the step of the best snapshot; empty if ``other`` is as good, or none was evaluated."""
        best, quality = [], None if other is None else other.quality
        for step in steps:  # among equals the newest
            try:
                own = read_manifest(self.at(step)).quality
            except BadSnapshot:
                continue
            if own is not None and (quality is None or own > quality):
                best, quality = [step], own
        return best

    def forget_after(self, step: int) -> None:
        """Delete snapshots after ``step``, which a run that continues from there will write again."""
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
    # The manifest first: a partial snapshot must not look complete.
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def save_stage(folder: Path, stage: int, state: dict[str, Any]) -> SavedFile:
    """Write one stage's part of a snapshot.

    Raises:
        UserError: the file cannot be written, for example on a full disk.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    write_atomically(folder / _stage_name(stage), content)
    digest = hashlib.sha256(content).hexdigest()
    return SavedFile(stage=stage, size=len(content), sha256=digest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which marks a snapshot as complete.

    Raises:
        UserError: the manifest cannot be written.
    """
    content = {"format": FORMAT, **asdict(manifest)}
    write_atomically(folder / MANIFEST, (to_json(content, indent=2) + "\n").encode())


def verify(folder: Path) -> Manifest:
    """Check that all files of a snapshot are intact; return its manifest.

    Raises:
        BadSnapshot: a file is missing or has changed.
    """
    manifest = read_manifest(folder)
    for file in manifest.files:
        read_checked(folder, file)
    return manifest


def read_checked(folder: Path, file: SavedFile) -> bytes:
    """Read a stage's file, and check that it is intact.

    Raises:
        BadSnapshot: the file has changed.
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


def load_stage(folder: Path, stage: int, *, mmap: bool = False) -> dict[str, Any]:
    """Load a stage's part of a snapshot to the CPU.

    Args:
        folder: the snapshot's folder.
        stage: number of the stage.
        mmap: whether tensors are read from the disk when they are used.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / _stage_name(stage)
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError as error:  # rank 0 has found it
        raise UserError(
            f"{path} is not there for {socket.gethostname()}: let all ranks share the folder"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): give another snapshot") from error
    return state


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a snapshot, without checking its files.

    Raises:
        BadSnapshot: there is no manifest, or it is invalid.
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
            evaluated=Evaluated.of_json(evaluated),
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
    """Return the step in a snapshot folder's name; None for any other name."""
    match = re.fullmatch(r"step-(\d{8,})", folder.name)
    return None if match is None else int(match[1])


def _stage_name(stage: int) -> str:
    return f"stage-{stage}.pt"
