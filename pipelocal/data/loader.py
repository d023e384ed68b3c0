"""Batches from DataLoaders of the user's own, in an order that a resumed run meets again.

A loader is taken as it is: its data set, sampler, collate function and workers. What it draws depends on
(seed, epoch, batch) alone, never on what else the process draws or which rank reads: torch's generators,
Python's and NumPy's are seeded for each batch, and so are generators of the loader's own for each epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sized
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from pipelocal.data.batches import Batch
from pipelocal.data.dataset import DataInfo
from pipelocal.errors import DataError, UserError
from pipelocal.seeding import derive_seed, seeded

Loader = DataLoader[Any]


class LoaderBatches:
    """What the first stage reads of a training and a test loader.

    Args:
        train: yields pairs ``(x, target)``; None to evaluate only.
        test: the same; None for no evaluation.
        seed: the run's.

    Raises:
        UserError: they are no loaders that can be read so.
    """

    def __init__(self, train: Loader | None, test: Loader | None, *, seed: int) -> None:
        self._train, self._test, self._seed = train, test, seed
        for what, loader in (("train", train), ("test", test)):
            if loader is not None:
                _check_loader(what, loader)
        self._initial_seeds = [g.initial_seed() for g in _generators(train)]
        first = train if train is not None else test
        assert first is not None, "there is something to read"
        self._first = self._peek(first)
        self.batch_size = max(_rows_of(loader, self._first) for loader in (train, test) if loader)
        """Rows of the largest batch."""
        self.steps_per_epoch = 0 if train is None else len(train)
        """Number of batches that a whole epoch yields."""
        self.smallest_batch = 0 if train is None else _smallest(train, len(self._first.target))
        """Rows of the smallest training batch."""
        if train is not None and self.steps_per_epoch == 0:
            raise UserError(
                "train: the loader yields no batch: give one with more samples than a batch has, or "
                "without drop_last"
            )

    def info(self, classes: int | None) -> DataInfo:
        """What a sample is like, as the first batch shows it."""
        return DataInfo(
            name="own",
            sample_shape=tuple(self._first.x.shape[1:]),
            classes=classes or 1,
            target_shape=tuple(self._first.target.shape[1:]),
            sample_dtype=self._first.x.dtype,
        )

    def describe(self) -> dict[str, Any]:
        """See :class:`~pipelocal.data.batches.Batches`; the fingerprint is of the first batch."""
        content = hashlib.sha256()
        for tensor in (self._first.x, self._first.target):
            content.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        counts = {
            f"{what}_samples": _samples(loader)
            for what, loader in (("train", self._train), ("test", self._test))
        }
        info = self.info(None).to_json()
        return {
            **info,
            "target_dtype": "int64",
            **counts,
            "fingerprint": content.hexdigest(),
        }

    def makers(self, epoch: int, start: int = 0) -> Iterator[Callable[[], Batch]]:
        """See :class:`~pipelocal.data.batches.Batches`.

        A loader cannot jump: batches before the first that is wanted are loaded, too, and let go.
        """
        assert self._train is not None
        for generator, initial in zip(_generators(self._train), self._initial_seeds, strict=True):
            generator.manual_seed(derive_seed(self._seed, "loader", epoch, initial))
        for sampler in (self._train.sampler, self._train.batch_sampler):
            set_epoch = getattr(sampler, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
        walk = _Walk(self._train, (self._seed, "load", epoch), self.batch_size)
        for step in range(start, self.steps_per_epoch):
            yield partial(walk.batch, step)

    def test_makers(self) -> Iterator[Callable[[], Batch]]:
        """See :class:`~pipelocal.data.batches.Batches`."""
        if self._test is None:
            return
        walk = _Walk(self._test, (self._seed, "test", 0), self.batch_size)
        for step in range(len(self._test)):
            yield partial(walk.batch, step)

    def _peek(self, loader: Loader) -> Batch:
        walk = _Walk(loader, (self._seed, "peek", 0), None)
        try:
            return walk.batch(0)
        finally:
            walk.close()


class _Walk:
    """One pass over a loader."""

    def __init__(self, loader: Loader, seeds: tuple[int, str, int], most_rows: int | None) -> None:
        self._loader = loader
        self._seeds = seeds
        self._most_rows = most_rows
        self._iterator: Iterator[Any] | None = None
        self._next = 0
        self._seen = 0

    def batch(self, step: int) -> Batch:
        """The batch of this number; those before it are let go.

        Raises:
            DataError: it is none that a stage can take, or the loader ended early.
        """
        seed, what, epoch = self._seeds
        while True:
            with seeded(seed, what, epoch, self._next):
                if self._iterator is None:
                    self._iterator = iter(self._loader)
                try:
                    item = next(self._iterator)
                except StopIteration:
                    raise DataError(
                        f"the loader ended before batch {self._next}, and its length is "
                        f"{len(self._loader)}: have both say the same"
                    ) from None
            batch = _as_batch(item, self._seen, self._most_rows)
            self._next, self._seen = self._next + 1, self._seen + len(batch.target)
            if self._next > step:
                return batch

    def close(self) -> None:
        """Let go of workers."""
        self._iterator = None


def _as_batch(item: Any, first: int, most_rows: int | None) -> Batch:
    """What a loader yields, as a stage takes it.

    Raises:
        DataError: it is of another kind.
    """
    pair = isinstance(item, tuple | list) and len(item) == 2
    if not pair or not all(isinstance(part, Tensor) for part in item):
        kinds = [type(part).__name__ for part in item] if isinstance(item, tuple | list) else ""
        raise DataError(
            f"a batch is {type(item).__name__} {kinds}: have the loader yield two tensors, (x, target)"
        )
    x, target = item
    if x.is_floating_point():
        x = x.float()
    elif x.dtype == torch.int64:
        pass
    else:
        raise DataError(
            f"samples of {x.dtype}: have the loader yield floating point numbers, scaled as the model wants "
            f"them, or int64 tokens"
        )
    if target.is_floating_point() or target.dtype == torch.bool or target.dim() == 0:
        raise DataError(
            f"targets of {target.dtype} {list(target.shape)}: have the loader yield whole numbers, the "
            f"classes [B] or [B, T]"
        )
    if len(x) != len(target) or len(x) == 0:
        raise DataError(f"{len(x)} samples with {len(target)} targets: give one for each sample")
    if most_rows is not None and len(x) > most_rows:
        raise DataError(
            f"a batch of {len(x)} samples, after one of {most_rows}: have the loader yield its largest "
            f"batch first, or batches of one size"
        )
    ids = torch.arange(first, first + len(x))
    return Batch(x.contiguous(), target.long().contiguous(), ids)


def _check_loader(what: str, loader: Any) -> None:
    if not isinstance(loader, DataLoader):
        raise UserError(
            f"{what}: {type(loader).__name__} is no DataLoader: give torch.utils.data.DataLoader(...)"
        )
    if isinstance(loader.dataset, IterableDataset):
        raise UserError(
            f"{what}: its data set is an IterableDataset, of which a run cannot go on in the middle: give "
            f"a data set with __getitem__ and __len__"
        )
    if isinstance(loader.sampler, DistributedSampler):
        raise UserError(
            f"{what}: a DistributedSampler deals the samples out over ranks, and here the first stage reads "
            f"them all: leave it out"
        )


def _generators(loader: Loader | None) -> list[torch.Generator]:
    """Those that a loader or its sampler draws from, instead of torch's own."""
    if loader is None:
        return []
    holders = (loader, loader.sampler, loader.batch_sampler)
    found = [getattr(holder, "generator", None) for holder in holders]
    unique = {id(generator): generator for generator in found if generator is not None}
    return list(unique.values())


def _samples(loader: Loader | None) -> int:
    return len(loader.dataset) if loader is not None and isinstance(loader.dataset, Sized) else 0


def _rows_of(loader: Loader, first: Batch) -> int:
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return size if isinstance(size, int) else len(first.target)


def _smallest(loader: Loader, rows: int) -> int:
    size = loader.batch_size
    if size is None or loader.drop_last:
        return rows
    sampler = loader.sampler
    samples = len(sampler) if isinstance(sampler, Sized) else _samples(loader)
    return samples % size or size
