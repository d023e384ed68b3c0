"""Takes snapshots off the training path: a copy in memory, and a thread that writes it.

::

    compute thread     ... batch 200 | copy | batch 201 | batch 202 ...
    this thread                             | stage-2.pt, its checksum to all | on rank 0: manifest |

A new snapshot waits until the one before is written, so at most one copy is held.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pipelocal.checkpoint.snapshot import Manifest, SavedFile, SnapshotFolder
from pipelocal.errors import PipelocalError

POLL_S = 0.1

Check = Callable[[], None]


class SnapshotWriter:
    """Writes this rank's part of every snapshot; rank 0 also completes them.

    Args:
        folder: where to.
        put: publishes a fact to all ranks.
        take: waits for a fact that nobody else does; raises if another rank failed.
        check: raises if another rank failed.
        own: numbers of this rank's stages.
        complete: on rank 0, makes the manifest of a snapshot of its files; None elsewhere.
        stages: number of stages of all ranks.
        keep: how many snapshots stay.
    """

    def __init__(
        self,
        folder: SnapshotFolder,
        *,
        put: Callable[[str, Any], None],
        take: Callable[[str], Any],
        check: Check,
        own: range,
        complete: Callable[[int, list[SavedFile]], Manifest] | None,
        stages: int,
        keep: int,
    ) -> None:
        self._folder = folder
        self._put = put
        self._take = take
        self._check = check
        self._own = own
        self._complete = complete
        self._stages = stages
        self._keep = keep
        self._jobs: queue.Queue[tuple[int, int, dict[str, Any]] | None] = queue.Queue()
        self._idle = threading.Event()
        self._idle.set()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    def save(self, step: int, stage: int, state: dict[str, Any]) -> None:
        """Copy a stage's state and have it written; waits while an older snapshot is being written.

        Raises:
            PipelocalError: the one before could not be written, or another rank failed.
        """
        if stage == self._own.start:
            self._wait()
            self._idle.clear()
        self._jobs.put((step, stage, _copied(state)))

    def close(self) -> None:
        """Wait until all is written.

        Raises:
            PipelocalError: it could not be, or another rank failed.
        """
        self._wait()
        self._jobs.put(None)

    def _wait(self) -> None:
        while not self._idle.wait(POLL_S):
            self._check()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                step, stage, state = job
                saved = self._folder.save_stage(step, stage, state)
                del job, state
                self._put(_key(step, stage), asdict(saved))
                if stage == self._own.stop - 1:
                    if self._complete is not None:
                        keys = [_key(step, number) for number in range(1, self._stages + 1)]
                        files = [SavedFile(**self._take(key)) for key in keys]
                        self._folder.complete(self._complete(step, files), keep=self._keep)
                    self._idle.set()
        except PipelocalError as error:
            self._error = error
        except Exception as error:
            self._error = PipelocalError(f"a snapshot could not be written: {error}")
        self._idle.set()


def _key(step: int, stage: int) -> str:
    return f"snapshot/{step}/{stage}"


def _copied(value: Any) -> Any:
    """A copy on the CPU that what trains on cannot change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
