"""Takes snapshots off the training path: a copy in memory, and a thread that writes it.

::

    compute thread     ... batch 200 | copy | batch 201 | batch 202 ...
    this thread                             | stage-2.pt, its checksum to all | on rank 0: manifest |

A new snapshot waits until the previous one is written, so at most one copy is held.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelocal.checkpoint.snapshot import Evaluated, SavedFile, save_stage
from pipelocal.errors import PipelocalError

POLL_S = 0.1

Check = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a rank tells rank 0 about a stage's file."""

    file: SavedFile
    evaluated: Evaluated | None
    """Figures of the stage's own head in the newest evaluation."""
    seconds: float = 0.0
    """Seconds that this snapshot has cost this rank so far, to copy and to write."""

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Part:
        """Make a part from the result of ``asdict``."""
        found = value["evaluated"]
        evaluated = None if found is None else Evaluated(**found)
        file = SavedFile(**value["file"])
        return cls(file=file, evaluated=evaluated, seconds=value["seconds"])


class SnapshotWriter:
    """Writes this rank's part of every snapshot; rank 0 also completes them.

    Args:
        at: returns the folder of the snapshot after a number of batches.
        put: publishes a fact to all ranks.
        take: waits for a fact and deletes it; raises if another rank failed.
        check: raises if another rank failed.
        own: numbers of this rank's stages.
        complete: on rank 0, marks a snapshot as complete; None elsewhere.
        stages: number of stages on all ranks.
    """

    def __init__(
        self,
        at: Callable[[int], Path],
        *,
        put: Callable[[str, Any], None],
        take: Callable[[str], Any],
        check: Check,
        own: range,
        complete: Callable[[int, list[Part]], None] | None,
        stages: int,
    ) -> None:
        self._at = at
        self._put = put
        self._take = take
        self._check = check
        self._own = own
        self._complete = complete
        self._stages = stages
        self.seconds = 0.0
        """Most seconds that the last snapshot has cost any rank; known on rank 0."""
        self._spent = 0.0
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._idle = threading.Event()
        self._idle.set()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether nothing is being written."""
        return self._idle.is_set()

    def save(
        self, step: int, stage: int, state: dict[str, Any], evaluated: Evaluated | None
    ) -> None:
        """Copy a stage's state and queue it for writing; wait while an older snapshot is being written.

        Raises:
            PipelocalError: the previous snapshot could not be written, or another rank failed.
        """
        if stage == self._own.start:
            self._wait()
            self._idle.clear()
            self._spent = 0.0
        started = time.perf_counter()
        copied = _copied(state)
        seconds = time.perf_counter() - started
        self._jobs.put(lambda: self._write(step, stage, copied, evaluated, seconds))

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
            PipelocalError: writing failed, or another rank failed.
        """
        self._wait()
        self._jobs.put(None)

    def leave(self) -> None:
        """Wait until what was begun is written or fails; for a run that has failed by something else."""
        self._jobs.put(None)
        self._thread.join()

    def _wait(self) -> None:
        while not self._idle.wait(POLL_S):
            self._check()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job()
                del job  # which frees the copy
        except PipelocalError as error:
            self._error = error
        except Exception as error:
            self._error = PipelocalError(f"a snapshot could not be written: {error}")
        self._idle.set()

    def _write(
        self,
        step: int,
        stage: int,
        state: dict[str, Any],
        evaluated: Evaluated | None,
        seconds: float,
    ) -> None:
        started = time.perf_counter()
        file = save_stage(self._at(step), stage, state)
        self._spent += seconds + time.perf_counter() - started
        part = Part(file=file, evaluated=evaluated, seconds=self._spent)
        self._put(_key(step, stage), asdict(part))
        if stage < self._own.stop - 1:
            return
        if self._complete is not None:
            keys = [_key(step, number) for number in range(1, self._stages + 1)]
            parts = [Part.of_json(self._take(key)) for key in keys]
            self._complete(step, parts)
            self.seconds = max(part.seconds for part in parts)
        self._idle.set()


def _key(step: int, stage: int) -> str:
    return f"snapshot/{step}/{stage}"


def _copied(value: Any) -> Any:
    """Copy to the CPU, so that further training cannot change it."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
