"""The batches of an iterable data set, which is read from its beginning.

Where it is, only the data set knows. If it has ``state_dict`` and ``load_state_dict``, its state behind every
batch travels with the batch, and a run goes on with that of the last one; so do the states of a DataLoader
that has them, such as torchdata's StatefulDataLoader. Otherwise a run that goes on reads all the batches
before, and says so.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sized
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Generator as TorchGenerator
from torch.utils.data import DataLoader, IterableDataset

from pipelocal.data.batches import Mine, everything
from pipelocal.data.collating import Collator, Loaded, loaded, told_error
from pipelocal.data.in_time import in_time
from pipelocal.data.loading import (
    BATCH_SIZE,
    CUT_OFF,
    Loading,
    Start,
    as_it_is,
    end_at_once,
    is_timeout,
    is_worker_failure,
    worker_failed,
)
from pipelocal.data.samples import own_collate
from pipelocal.errors import DataError, UserError
from pipelocal.seeding import derive_seed, host_generators_kept, reseed_host
from pipelocal.system.plain_state import why_not_plain
from pipelocal.system.streams import tell

Item = tuple[Loaded, Any]
"""A batch, and the state of the data set behind it."""


class Stream:
    """A data set with ``__iter__`` alone.

    Args:
        given: the data set, or a DataLoader of one.
        what: ``train`` or ``test``.
        seed: the run's.
        loading: how.
        steps: batches of an epoch, if the data set has no length; None if nobody knows.
    """

    def __init__(
        self, given: Any, what: str, seed: int, loading: Loading, steps: int | None
    ) -> None:
        self._what, self._seed = what, seed
        self._patience_s = loading.patience_s
        self._kept: dict[str, Any] | None = None
        self._loader, size, length, self.samples = _opened(given, what, seed, loading)
        self._source: Any = self._loader if _keeps_state(self._loader) else None
        """The DataLoader, if it keeps its own state."""
        dataset = self._loader.dataset
        self._own = dataset if isinstance(dataset, _Own) else None
        self._keeps = self._source is not None or (self._own is not None and self._own.keeps)
        self._whole_passes = length is not None
        if length is None and what == "test":
            raise UserError(
                f"test: {type(given).__name__} has no length, so that an evaluation might never end: give it "
                f"__len__, or a list of its samples"
            )
        if length is None and steps is None:
            raise UserError(
                f"train: {type(given).__name__} has no length: say how many batches to train on, with "
                f"--max-steps, or max_steps= in Python; epochs are equal parts of them"
            )
        known = steps if length is None else length
        assert known is not None
        self.steps = known
        if self.steps == 0:
            raise UserError(f"{what}: the data set yields no batch: give more samples")
        self._place = (0, 0)
        """The pass over the data, and the batches of it that were read."""
        self._counted = 0
        """Batches read in all passes."""
        self._done: int | None = None
        """Batches of the run before the first epoch that is read here; None once that has begun."""
        self._shift = 0
        """How many more these were than its epochs, as long as they are now, would have had."""
        self._walk: Iterator[Item] | None = None
        self._shared = self.samples if self._own is None and _is_shared(self._loader) else 0
        """Samples of a pass that several workers share out. Each ends with a batch of its own, so there are
        more batches than the loader's length says."""
        self._peeked: Item | None = None
        self._peeked = self._next()
        self.first = self._peeked[0]
        """The first batch, to see what there is."""
        self._place, self._counted = (0, 0), 0
        rows = len(self.first.tensors[0]) if self.first.tensors else 1
        self.batch_size = size or rows
        self.smallest = self.samples % self.batch_size or rows

    ahead = False
    """A state must be that of the last batch that was handed on."""

    def read(
        self, epoch: int = 0, start: int = 0, mine: Mine = everything
    ) -> Generator[Loaded | None]:
        """Read the batches of an epoch from a step on, None for those of others."""
        self._go_to(epoch, start)
        return self._read(start, mine)

    def _read(self, start: int, mine: Mine) -> Generator[Loaded | None]:
        rows = self._shared if start else 0
        for step in range(start, self.steps):
            batch, self._kept = self._next()
            rows += _rows(batch)
            if self._what == "train" and step == self.steps - 1 and rows < self._shared:
                self._tell_of_the_rest(rows)
            yield batch if mine(step) else None
        step = self.steps
        while self._what == "test" and rows < self._shared and (item := self._drawn()) is not None:
            rows += _rows(item[0])
            yield item[0] if mine(step) else None
            step += 1

    def _tell_of_the_rest(self, rows: int) -> None:
        tell(
            f"{self._what}: {self._shared - rows} of {self._shared} samples are left out of each pass, since "
            f"{self._loader.num_workers} workers make more batches of them than the DataLoader's length of "
            f"{self.steps}: have each worker yield whole batches, or give num_workers=1"
        )
        self._shared = 0

    def _go_to(self, epoch: int, start: int) -> None:
        """Be where the batch of this step comes next."""
        if self._whole_passes:
            wanted = (epoch, start)
            if self._place == wanted:
                return
            if self._place[0] != epoch or self._place[1] > start:
                self._begin(epoch)
            skipped = start - self._place[1]
        else:
            if self._done is not None:
                self._shift, self._done = self._done - (epoch * self.steps + start), None
            done = epoch * self.steps + start + self._shift
            skipped = done - self._counted
            if skipped < 0:
                raise DataError(f"{self._what}: it was read beyond batch {done}")
        if skipped > 0 and not self._keeps:
            tell(
                f"{self._what}: the data set has no state_dict to go on from: reading its first {skipped} "
                f"batches again"
            )
        for _ in range(skipped):
            self._next()

    def _begin(self, number: int) -> None:
        self._walk, self._peeked, self._place = None, None, (number, 0)
        if self._own is not None:
            self._own.begin(number)
        elif (set_epoch := getattr(self._loader.dataset, "set_epoch", None)) is not None:
            set_epoch(number)

    def _next(self) -> Item:
        """Return the next batch; a data set without a length begins anew at its end."""
        self._counted += 1
        if self._peeked is not None and self._place == (0, 0):
            item: Item | None = self._peeked
            self._peeked = None
        else:
            item = self._drawn()
            while item is None:
                number, read = self._place
                if self._whole_passes or read == 0:
                    raise DataError(self._ended(read))
                if number == 0:
                    tell(f"{self._what}: the data set ended after {read} batches: it begins anew")
                self._begin(number + 1)
                item = self._drawn()
        assert item is not None
        self._place = (self._place[0], self._place[1] + 1)
        return item

    def _drawn(self) -> Item | None:
        number, read = self._place
        with host_generators_kept():
            name = "load" if self._what == "train" else "test"
            reseed_host(derive_seed(self._seed, name, number, read))
            try:
                with in_time(self._patience_s, self._what):
                    if self._walk is None:
                        self._walk = iter(self._loader)
                    item = next(self._walk, None)
            except DataError:
                end_at_once(self._walk)
                raise
            except (Exception, SystemExit) as error:
                end_at_once(self._walk)
                cut = self._loader.num_workers > 0 and isinstance(error, CUT_OFF)
                own = str(error).startswith("Caught ")  # by the worker, which lives
                if is_worker_failure(error) or is_timeout(error) or (cut and not own):
                    raise worker_failed(error, self._what, self._loader.timeout) from None
                raise DataError(f"{self._what}: {_failed(read, error)}") from error
        if item is None or self._own is not None:
            return item
        try:
            return Loaded(Collator().flat(item)), None
        except DataError as error:
            return Loaded(trouble=str(error)), None

    def _ended(self, read: int) -> str:
        if read == 0:
            return f"{self._what}: the data set yields nothing: give one whose __iter__ begins anew"
        return (
            f"{self._what}: the loader ended before batch {read}, and its length is {self.steps}: have both "
            f"say the same"
        )

    def state_dict(self) -> dict[str, Any] | None:
        """Return the place, and the data set's own state behind the last batch.

        Raises:
            UserError: the state holds what a snapshot cannot.
        """
        if not self._keeps:
            return None
        state = self._kept if self._source is None else self._source.state_dict()
        _check_plain(state, self._what)
        return {"place": list(self._place), "counted": self._counted, "data": state}

    def go_on(self, done: int, state: dict[str, Any] | None) -> None:
        """Go on behind this many batches, at which the state was taken."""
        self._done = done
        if state is None:
            return
        self._begin(state["place"][0])
        number, read = self._place = (state["place"][0], state["place"][1])
        self._counted = state["counted"]
        if self._own is not None:
            self._own.begin(number, read, state["data"])
        else:
            self._source.load_state_dict(state["data"])

    def close(self) -> None:
        """End the worker."""
        self._walk = None


class _Own(IterableDataset[Item]):
    """Batches of a user's iterable data set, each with the state behind it."""

    def __init__(
        self,
        dataset: Any,
        collate: Collator,
        batch_size: int,
        drop_last: bool,
        seed: int,
        what: str,
    ) -> None:
        self.dataset = dataset
        self.keeps = _keeps_state(dataset)
        self._collate, self._size, self._drop = collate, batch_size, drop_last
        self._seed, self._what = seed, what
        self._number, self._start = 0, 0
        self._state: Any = None

    def __iter__(self) -> Iterator[Item]:
        number, read = self._number, self._start
        if self._state is not None:  # here: a worker's data set is a copy
            self.dataset.load_state_dict(self._state)
        samples = None
        while True:
            reseed_host(derive_seed(self._seed, "stream", self._what, number, read))
            try:
                samples = iter(self.dataset) if samples is None else samples
                rows = list(islice(samples, self._size))
            except (Exception, SystemExit) as error:  # a worker would lose its words
                yield Loaded(trouble=_failed(read, error)), None
                return
            if not rows or (self._drop and len(rows) < self._size):
                return
            ids = range(read * self._size, read * self._size + len(rows))
            state = self.dataset.state_dict() if self.keeps else None
            yield loaded(rows, list(ids), self._collate), state
            read += 1

    def begin(self, number: int, read: int = 0, state: Any = None) -> None:
        """Say which pass comes next, and the batches of it that were read, up to this state."""
        self._number, self._start, self._state = number, read, state
        if (set_epoch := getattr(self.dataset, "set_epoch", None)) is not None:
            set_epoch(number)


def _opened(
    given: Any, what: str, seed: int, loading: Loading
) -> tuple[DataLoader[Any], int | None, int | None, int]:
    """Return what reads the data, rows of a batch and batches of a pass, if known, and samples, or 0.

    Raises:
        UserError: it can be read only once.
    """
    dataset, workers, size = given, loading.workers, loading.batch_size or BATCH_SIZE
    collate = Collator(loading.collate, loading.columns)
    drop_last = loading.drop_last and what == "train"
    if isinstance(given, DataLoader):
        own_workers = given.num_workers
        if _keeps_state(given) or own_workers > 1 or given.batch_size is None:
            return given, given.batch_size, _length(given), _length(given.dataset) or 0
        dataset, workers, size = given.dataset, own_workers, given.batch_size
        collate, drop_last = replace(collate, collate=own_collate(given)), given.drop_last
    if isinstance(dataset, Iterator):
        raise UserError(
            f"{what}: {type(dataset).__name__} can be read only once: give an IterableDataset, whose "
            f"__iter__ begins anew"
        )
    if workers > 1:
        tell(
            f"{what}: one worker reads an iterable data set, as each would read all of it: give a DataLoader "
            f"with num_workers={workers} if it shares itself out by get_worker_info"
        )
        workers = 1
    samples = _length(dataset)
    length = None if samples is None else (samples // size if drop_last else -(-samples // size))
    own = _Own(dataset, collate, size, drop_last, seed, what)
    loader: DataLoader[Any] = DataLoader(
        own,
        batch_size=None,
        num_workers=workers,
        collate_fn=as_it_is,
        timeout=loading.patience_s if workers else 0.0,
        worker_init_fn=Start(None) if workers else None,
        generator=TorchGenerator(),
    )
    return loader, size, length, samples or 0


def _failed(read: int, error: BaseException) -> str:
    """Say in one line what failed after so many batches, also in a worker process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    by_worker = len(lines) > 1 and lines[0].startswith("Caught ")
    reason = lines[-1] if by_worker else told_error(error)
    return f"the data set failed after {read} batches ({reason}): mend its __iter__"


def _length(thing: Any) -> int | None:
    try:
        return len(thing) if isinstance(thing, Sized) else None
    except TypeError:  # a DataLoader has __len__ in any case
        return None


def _is_shared(loader: DataLoader[Any]) -> bool:
    """Return whether several workers share the samples of an iterable data set, and every one counts."""
    iterable = isinstance(loader.dataset, IterableDataset) and loader.batch_size is not None
    return iterable and loader.num_workers > 1 and not loader.drop_last


def _rows(batch: Loaded) -> int:
    return len(batch.tensors[0]) if batch.tensors else 0


def _keeps_state(thing: Any) -> bool:
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def is_iterable(thing: Any) -> bool:
    """Whether something can be read from its beginning alone."""
    dataset = thing.dataset if isinstance(thing, DataLoader) else thing
    if isinstance(dataset, IterableDataset):
        return True
    return isinstance(dataset, Iterable) and not hasattr(dataset, "__getitem__")


def _check_plain(state: Any, what: str) -> None:
    error = why_not_plain(state)
    if error is not None:
        raise UserError(
            f"{what}: the state_dict of the data holds what a snapshot cannot ({told_error(error)}): have it "
            f"hold numbers, text, lists, dicts and tensors alone"
        ) from error
