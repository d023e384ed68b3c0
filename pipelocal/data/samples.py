"""The batches of a map-style data set, given alone or in a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sized
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from pipelocal.data.batches import Mine, everything
from pipelocal.data.collating import Collator, Loaded, told_error
from pipelocal.data.loading import BATCH_SIZE, Key, Loaders, Loading
from pipelocal.errors import DataError, UserError
from pipelocal.seeding import derive_seed, host_generators_kept, reseed_host

LOOKED_AT = 8
"""Samples that show what a data set holds, evenly spaced."""


class Samples:
    """A data set with ``__getitem__`` and ``__len__``: batches can be read from any step on.

    Args:
        given: the data set, or a DataLoader with its own sampler, collate function and workers.
        what: ``train`` or ``test``.
        seed: the run's.
        loading: how, where no DataLoader says so.
    """

    def __init__(self, given: Any, what: str, seed: int, loading: Loading) -> None:
        self._what, self._seed = what, seed
        self._count = 0
        self._draw = self._own_draw
        self.dataset = given
        collate = Collator(loading.collate, loading.columns)
        more: dict[str, Any] = {}
        if isinstance(given, DataLoader):
            _check_loader(what, given)
            self.dataset, self._loader = given.dataset, given
            self._count = self.samples
            self._draw = self._loaders_draw
            self._initial_seeds = [each.initial_seed() for each in _generators(given)]
            collate = replace(
                collate, collate=own_collate(given), batches=given.batch_sampler is None
            )
            loading = replace(
                loading, workers=given.num_workers, patience_s=given.timeout or loading.patience_s
            )
            more = {"start_worker": given.worker_init_fn, "context": given.multiprocessing_context}
            self.steps = len(given)
        else:
            self._count = self.samples
            self._size = self._checked_size(loading.batch_size)
            self._drop = loading.drop_last and what == "train"
            whole, rest = divmod(self._count, self._size)
            self.steps = whole if self._drop else whole + (rest > 0)
        self._loaders = Loaders(self.dataset, what, seed, loading, collate, **more)
        if self.steps == 0:
            raise UserError(
                f"{what}: the loader yields no batch: give one with more samples than a batch has, or "
                f"without drop_last"
            )
        self.first = self._look()
        """Some samples as a batch, to see what there is."""
        self.batch_size, self.smallest = self._sizes()

    @property
    def samples(self) -> int:
        """Number of samples in the data set.

        Raises:
            DataError: its ``__len__`` fails.
        """
        try:
            return len(self.dataset) if isinstance(self.dataset, Sized) else 0
        except Exception as error:
            raise DataError(
                f"{self._what}: the data set's __len__ fails ({told_error(error)}): have it return the "
                f"number of samples"
            ) from error

    @property
    def ahead(self) -> bool:
        """Whether batches may be loaded by another thread."""
        return self._loaders.ahead

    def read(
        self, epoch: int = 0, start: int = 0, mine: Mine = everything
    ) -> Generator[Loaded | None]:
        """Load the batches of an epoch from a step on, None for those of others; nothing is skipped over.

        Raises:
            DataError: the loader's sampler draws fewer batches than its length says, or the data set has
                another length than before.
        """
        if (now := self.samples) != self._count:
            raise DataError(
                f"{self._what}: the data set holds {now} samples in epoch {epoch + 1}, and held "
                f"{self._count} at first: have its length stay"
            )
        indices = self._draw(epoch)
        steps = range(start, self.steps)
        keys: list[Key] = [(epoch, indices(step)) for step in steps if mine(step)]
        batches = self._loaders.read(keys)
        return self._with_gaps(batches, steps, mine)

    def close(self) -> None:
        """End the workers."""
        self._loaders.close()

    def state_dict(self) -> None:
        """A step says all."""

    def go_on(self, _done: int, _state: dict[str, Any] | None) -> None:
        """See :meth:`state_dict`."""

    def _with_gaps(
        self, batches: Generator[Loaded], steps: range, mine: Mine
    ) -> Generator[Loaded | None]:
        for step in steps:
            yield next(batches) if mine(step) else None

    def _own_draw(self, epoch: int) -> Callable[[int], list[int]]:
        """Return the indices of each batch: in a new order for each epoch, or in order for testing."""
        size, count = self._size, self._count
        if self._what == "test":
            return lambda step: list(range(step * size, min(count, (step + 1) * size)))
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
        order = torch.randperm(count, generator=generator)
        return lambda step: order[step * size : (step + 1) * size].tolist()

    def _loaders_draw(self, epoch: int) -> Callable[[int], list[Any]]:
        """Return the indices of each batch as the DataLoader's own sampler draws them."""
        loader = self._loader
        for generator, initial in zip(_generators(loader), self._initial_seeds, strict=True):
            generator.manual_seed(derive_seed(self._seed, "loader", epoch, initial))
        for sampler in (loader.sampler, loader.batch_sampler):
            if (set_epoch := getattr(sampler, "set_epoch", None)) is not None:
                set_epoch(epoch)
        alone = loader.batch_sampler is None
        name = "load" if self._what == "train" else "test"
        with host_generators_kept():
            reseed_host(derive_seed(self._seed, name, epoch, 0))
            # As a DataLoader does first, so that samplers draw what they would draw in it.
            torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
            drawn = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
            try:
                batches = [[each] if alone else list(each) for each in islice(drawn, self.steps)]
            except Exception as error:
                raise DataError(f"{self._what}: the sampler failed: {told_error(error)}") from error
        if len(batches) < self.steps:
            raise DataError(
                f"{self._what}: the loader ended before batch {len(batches)}, and its length is "
                f"{self.steps}: have both say the same"
            )
        return batches.__getitem__

    def _look(self) -> Loaded:
        if self._draw == self._own_draw:
            spread = torch.linspace(0, self._count - 1, min(LOOKED_AT, self._count))
            indices: list[Any] = spread.long().tolist()
        else:
            indices = self._draw(0)(0)
        return self._loaders.here((-1, indices))

    def _sizes(self) -> tuple[int, int]:
        """Return the rows of the largest and of the smallest batch."""
        if self._draw == self._own_draw:
            rest = self._count % self._size
            return self._size, rest if rest and not self._drop else self._size
        rows = len(self.first.tensors[0]) if self.first.tensors else 1
        loader = self._loader
        size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        most = size if isinstance(size, int) else rows
        if loader.batch_size is None or loader.drop_last:
            return most, rows
        sampler = loader.sampler
        samples = len(sampler) if isinstance(sampler, Sized) else self.samples
        return most, samples % loader.batch_size or loader.batch_size

    def _checked_size(self, wanted: int | None) -> int:
        count = self._count
        if count == 0:
            mend = ", or no test data" if self._what == "test" else ""
            raise DataError(f"{self._what}: the data set holds no sample: give at least one{mend}")
        if self._what == "train" and wanted is not None and wanted > count:
            raise UserError(
                f"batch size {wanted} for a training set of {count} samples: give a batch size from 1 to "
                f"{count}"
            )
        return min(wanted or BATCH_SIZE, count)


def own_collate(loader: DataLoader[Any]) -> Any:
    """Return the user's collate function, or None for torch's."""
    module = getattr(loader.collate_fn, "__module__", None) or ""
    return None if module.startswith("torch.utils.data") else loader.collate_fn


def _check_loader(what: str, loader: DataLoader[Any]) -> None:
    if isinstance(loader.sampler, DistributedSampler):
        raise UserError(
            f"{what}: a DistributedSampler deals the samples out over ranks, and here the first stage reads "
            f"them all: leave it out"
        )
    try:
        len(loader)
    except TypeError:
        raise UserError(
            f"{what}: the loader's sampler has no length: give it __len__, so that epochs have an end"
        ) from None


def _generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """Return those that a loader or its sampler draws from, instead of torch's own."""
    holders = (loader, loader.sampler, loader.batch_sampler)
    found = [getattr(holder, "generator", None) for holder in holders]
    unique = {id(generator): generator for generator in found if generator is not None}
    return list(unique.values())
