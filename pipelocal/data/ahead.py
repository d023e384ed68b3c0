"""Prepares batches ahead of the stage that needs them, in a thread with a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from dataclasses import replace

from pipelocal.data.batches import Batch
from pipelocal.data.loading import worker_failed

DEPTH = 2
"""Batches that wait at most, besides the one that is being made."""
CLOSING_S = 5.0
"""Most seconds to wait for the thread when nobody wants its batches any more."""


def prepared_ahead(
    batches: Generator[Batch | None], *, pin: bool = False
) -> Generator[Batch | None]:
    """Yield the same batches, while a thread makes the next ones.

    Args:
        batches: what makes them; closed with this generator.
        pin: put them into pinned memory, from which CUDA copies while it computes.

    Raises:
        Exception: what ``batches`` raises, at the same place.
    """
    made: queue.Queue[tuple[Batch | None, BaseException | None, bool]] = queue.Queue(DEPTH)
    unwanted = threading.Event()

    def put(batch: Batch | None, error: BaseException | None, over: bool) -> None:
        while not unwanted.is_set():
            try:
                made.put((batch, error, over), timeout=0.1)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for batch in batches:
                put(_pinned(batch) if pin and batch is not None else batch, None, False)
                if unwanted.is_set():
                    break
            put(None, None, True)
        except BaseException as error:
            put(None, error, True)
        finally:
            batches.close()

    thread = threading.Thread(target=make, name="pipelocal-data", daemon=True)
    thread.start()
    try:
        while True:
            try:
                batch, error, over = made.get()
            except RuntimeError as lost:  # torch's handler of the signal that a worker died
                raise worker_failed(lost, "data") from lost
            if error is not None:
                raise error
            if over:
                return
            yield batch
    finally:
        unwanted.set()
        thread.join(CLOSING_S)


def _pinned(batch: Batch) -> Batch:
    return replace(
        batch,
        x=batch.x.pin_memory(),
        target=batch.target.pin_memory(),
        ids=batch.ids.pin_memory(),
        beside=tuple(tensor.pin_memory() for tensor in batch.beside),
    )
