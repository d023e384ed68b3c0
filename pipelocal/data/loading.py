"""Loads batches of a user's map-style data set, here or in worker processes, to the same bits.

What travels to a worker is (epoch, indices of a batch). Before each sample torch's, Python's and NumPy's
generators are seeded from the run's seed, the epoch and the index, so that neither the number of workers nor
what was loaded before can change an augmentation::

    order of the epoch    [5 0 | 3 1 | 4 2]      from (seed, epoch)
    worker 0              (7, [5, 0])  (7, [4, 2])
    worker 1              (7, [3, 1])             sample 3 from (seed, epoch 7, index 3)
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from torch import Generator as TorchGenerator
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torch.utils.data._utils import signal_handling

from pipelocal.data.collating import Collate, Collator, Failure, Loaded, loaded, told_error
from pipelocal.data.in_time import TooSlow, in_time, too_slow
from pipelocal.errors import DataError
from pipelocal.seeding import derive_seed, host_generators_kept, reseed_host
from pipelocal.system.patience import Patience

Key = tuple[int, Sequence[Any]]
"""An epoch, and the indices of a batch."""

BATCH_SIZE = 64
SLICE_S = 1.0
"""Seconds of waiting for workers, between two looks whether they live."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a user's data are loaded.

    Args:
        batch_size: samples in a batch, where no DataLoader says so; None for
            :data:`BATCH_SIZE`, or all samples if there are fewer.
        workers: processes that load ahead of the training; 0 loads in the training's own process.
        columns: see :class:`~pipelocal.data.collating.Collator`.
        collate: makes a batch of a list of samples.
        bad_samples: ``error``, or ``skip``: leave out and count samples that cannot be loaded.
        drop_last: whether an incomplete last training batch is left out.
        patience_s: most seconds that a batch may take; 0 for any.
    """

    batch_size: int | None = None
    workers: int = 0
    columns: tuple[str, ...] | None = None
    collate: Collate | None = None
    bad_samples: Literal["error", "skip"] = "error"
    drop_last: bool = False
    patience_s: float = 0.0


@dataclass(frozen=True)
class _Batches(Dataset[Loaded]):
    """A data set whose samples are batches."""

    dataset: Any
    collate: Collator
    seed: int
    what: str
    draws: bool

    def __getitem__(self, key: Key) -> Loaded:
        epoch, indices = key
        return loaded([self._sample(epoch, index) for index in indices], indices, self.collate)

    def _sample(self, epoch: int, index: Any) -> Any:
        if self.draws:
            reseed_host(derive_seed(self.seed, "sample", self.what, epoch, str(index)))
        try:
            sample = self.dataset[index]
        except (Exception, SystemExit) as error:
            return Failure.of(index, error)
        except TooSlow as late:
            late.place = f" (sample {index})"
            raise
        if sample is None and self.collate.collate is None:
            return Failure(index, "it is None")
        return sample


class Loaders:
    """What loads the batches of one data set.

    Args:
        dataset: the user's.
        what: ``train`` or ``test``.
        seed: the run's.
        loading: how.
        collate: makes batches of samples.
        start_worker: called in each worker with its number.
        context: how workers are started, as DataLoader takes it.
    """

    def __init__(
        self,
        dataset: Any,
        what: str,
        seed: int,
        loading: Loading,
        collate: Collator,
        *,
        start_worker: Callable[[int], None] | None = None,
        context: Any = None,
    ) -> None:
        self._batches = _Batches(dataset, collate, seed, what, not _draws_nothing(dataset))
        self._loading = loading
        self._keys: list[Key] = []
        self._loader: DataLoader[Loaded] | None = None
        self._start_worker = start_worker
        self._context = context

    @property
    def ahead(self) -> bool:
        """Whether nothing is drawn in this process while batches are loaded."""
        return self._loading.workers > 0

    def here(self, key: Key) -> Loaded:
        """Load a batch in this process."""
        with host_generators_kept(), in_time(self._loading.patience_s, self._batches.what):
            return self._batches[key]

    def read(self, keys: list[Key]) -> Generator[Loaded]:
        """Load these batches, in order; workers begin with the call."""
        if not self.ahead:
            return self._in_turn(keys)
        try:
            batches = iter(self._begun(keys))
        except Exception as error:
            what = self._batches.what
            if is_timeout(error) or is_worker_failure(error):
                raise worker_failed(error, what, self._loading.patience_s) from None
            raise DataError(
                f"{what}: the worker processes that load the data cannot be started ({told_error(error)}): "
                f"mend it, or give no workers"
            ) from error
        return self._by_workers(batches)

    def close(self) -> None:
        """End the workers."""
        self._loader = None

    def _in_turn(self, keys: list[Key]) -> Generator[Loaded]:
        for key in keys:
            yield self.here(key)

    def _begun(self, keys: list[Key]) -> DataLoader[Loaded]:
        self._keys[:] = keys
        if self._loader is None:
            self._loader = DataLoader(
                self._batches,
                batch_size=None,
                sampler=_Keys(self._keys),
                num_workers=self._loading.workers,
                collate_fn=as_it_is,
                persistent_workers=True,
                timeout=self._loading.patience_s,
                worker_init_fn=Start(self._start_worker),
                multiprocessing_context=self._context,
                generator=TorchGenerator(),  # or it would draw from the training's
            )
        return self._loader

    def _by_workers(self, batches: Any) -> Generator[Loaded]:
        most = self._loading.patience_s
        # In slices, as only after one of them torch looks whether the workers live.
        batches._timeout = min(SLICE_S, most / 8)
        patience = Patience(most)
        try:
            while True:
                try:
                    batch = next(batches, None)
                except (RuntimeError, *CUT_OFF) as error:
                    if is_timeout(error) and not patience.over():
                        continue
                    end_at_once(batches)
                    raise worker_failed(error, self._batches.what, most) from None
                if batch is None:
                    return
                yield batch
                patience = Patience(most)
        finally:
            batches._timeout = most


def worker_failed(error: BaseException, what: str = "data", patience_s: float = 0.0) -> DataError:
    """The error for worker processes that ended or are too slow."""
    if is_timeout(error):
        return too_slow(what, patience_s, " by the worker processes that load it")
    first = str(error).partition("\n")[0].partition(". ")[0].strip().rstrip(".")
    return DataError(
        f"{what}: a worker process that loads the data failed ({first}): if memory ran out, start fewer "
        f"workers; --workers 0 shows what else it is"
    )


def is_timeout(error: BaseException) -> bool:
    """Whether it is what torch raises when no worker gave a batch in time."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader timed out")


def end_at_once(iterator: Any) -> None:
    """End the workers of a loader that failed: one that hangs would outlive this process."""
    # Nothing of this is torch's public interface.
    if workers := getattr(iterator, "_workers", None):
        with suppress(AttributeError, ValueError):
            signal_handling._remove_worker_pids(id(iterator))  # or their end would be an error, too
            iterator._worker_pids_set = False
        for worker in workers:
            worker.kill()


def is_worker_failure(error: BaseException) -> bool:
    """Whether it is what torch raises, wherever this process is, when a worker has ended."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


CUT_OFF = (ConnectionError, EOFError, FileNotFoundError)
"""What reading raises that a worker's end has cut off; what a worker raises comes in other words."""


class _Keys:
    """The keys of the coming pass, whichever it is: persistent workers keep their loader."""

    def __init__(self, keys: list[Key]) -> None:
        self._keys = keys

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._keys))

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(frozen=True)
class Start:
    """Called in a worker process as it starts."""

    then: Callable[[int], None] | None

    def __call__(self, number: int) -> None:
        # These ask the training for a snapshot or its end, and a terminal sends them to all processes.
        for each in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(each, signal.SIG_IGN)
        if self.then is not None:
            self.then(number)


def as_it_is(batch: Any) -> Any:
    """Return what a worker made: it is a batch already."""
    return batch


def _draws_nothing(dataset: Any) -> bool:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return isinstance(dataset, TensorDataset | list | tuple)
