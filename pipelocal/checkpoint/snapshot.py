"""Snapshots of a run on its way: what lies in ``snapshots/``, and which of them can be trusted.

::

    runs/first/snapshots/
      step-00000200/
        stage-1.pt       all that stage 1 needs to go on after batch 200
        stage-2.pt
        manifest.json    written last, with the checksum of every file: without it there is no snapshot
      step-00000400/
        ...

Every stage writes its own file when the marker on the stream reaches it, so the files of one snapshot
are written at different times, and together are the state after the same batch.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipelocal.checkpoint.atomic import write_atomically
from pipelocal.errors import UserError
from pipelocal.strict_json import to_json

MANIFEST = "manifest.json"
FORMAT = 3
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
class Manifest:
    """What a snapshot is of."""

    step: int
    """Training batches before it, the same for every stage."""
    cut: list[str]
    """Where the model was cut: names of the units with which the stages after the first begin."""
    identity: dict[str, Any]
    """The options on which the bits depend."""
    files: tuple[SavedFile, ...]
    """One for every stage, in order."""


class SnapshotFolder:
    """The snapshots of one run.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "snapshots"

    def save_stage(self, step: int, stage: int, state: dict[str, Any]) -> SavedFile:
        """Write one stage's part of a snapshot.

        Raises:
            UserError: it cannot be written, as on a full disk.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        write_atomically(self._step_path(step) / _stage_name(stage), content)
        digest = hashlib.sha256(content).hexdigest()
        return SavedFile(stage=stage, size=len(content), sha256=digest)

    def complete(self, manifest: Manifest, *, keep: int) -> None:
        """Make a snapshot count, now that all its files are there; then drop the oldest ones.

        Args:
            manifest: names the files.
            keep: how many snapshots stay.
        """
        content = {"format": FORMAT, **asdict(manifest)}
        text = to_json(content, indent=2) + "\n"
        write_atomically(self._step_path(manifest.step) / MANIFEST, text.encode())
        steps = self.steps()
        for step in steps[keep:]:
            self._drop(step)
        for path in self.path.glob("step-*"):  # begun and never completed
            number = step_of(path)
            if number is not None and number < manifest.step and number not in steps:
                self._drop(number)

    def steps(self) -> list[int]:
        """The steps of all snapshots that were completed, the newest first; not verified."""
        found = (step_of(path.parent) for path in self.path.glob(f"step-*/{MANIFEST}"))
        return sorted((step for step in found if step is not None), reverse=True)

    def verify(self, step: int) -> Manifest:
        """The manifest of a snapshot all of whose files are as they were written.

        Raises:
            BadSnapshot: something is missing, or is not what was written.
        """
        folder = self._step_path(step)
        manifest = _read_manifest(folder / MANIFEST)
        if manifest.step != step:
            raise BadSnapshot(f"{folder / MANIFEST} is of step {manifest.step}")
        stages = [file.stage for file in manifest.files]
        if not stages or stages != list(range(1, len(stages) + 1)):
            raise BadSnapshot(f"{folder / MANIFEST} names the stages {stages}")
        for file in manifest.files:
            path = folder / _stage_name(file.stage)
            try:
                content = path.read_bytes()
            except OSError as error:
                raise BadSnapshot(f"{path} cannot be read ({error.strerror or error})") from error
            if len(content) != file.size:
                raise BadSnapshot(f"{path} has {len(content)} bytes where {file.size} were written")
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise BadSnapshot(f"{path} was changed after it was written (its checksum differs)")
        return manifest

    def load_stage(self, step: int, stage: int) -> dict[str, Any]:
        """A stage's part, on the CPU.

        Raises:
            UserError: the file cannot be read.
        """
        path = self._step_path(step) / _stage_name(stage)
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

    def _step_path(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def _drop(self, step: int) -> None:
        folder = self._step_path(step)
        # The manifest first: half of a snapshot must not look like one.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _stage_name(stage: int) -> str:
    return f"stage-{stage}.pt"


def step_of(folder: Path) -> int | None:
    """The step of a snapshot's folder, by its name; None if that is of something else."""
    match = re.fullmatch(r"step-(\d{8,})", folder.name)
    return None if match is None else int(match[1])


def _read_manifest(path: Path) -> Manifest:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("another version's format")
        files = tuple(SavedFile(**file) for file in content.pop("files"))
        return Manifest(files=files, **content)
    except OSError as error:
        raise BadSnapshot(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadSnapshot(f"{path} is no manifest of a snapshot ({reason})") from error
