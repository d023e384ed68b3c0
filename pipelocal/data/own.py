"""Batches of a user's own data: data sets, DataLoaders, iterables, or functions that return them."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from pipelocal.data.batches import Batch, Mine
from pipelocal.data.collating import FORMS, Loaded, told_error
from pipelocal.data.dataset import DataInfo
from pipelocal.data.loading import Loading
from pipelocal.data.samples import Samples
from pipelocal.data.splitting import split_by_index
from pipelocal.data.stream import Stream, is_iterable
from pipelocal.errors import DataError, UserError
from pipelocal.system.streams import tell
from pipelocal.system.tensor_kind import TensorKind

SHOWN = 10
"""Samples left out that are named."""


class Part(Protocol):
    """The training or the test data."""

    @property
    def first(self) -> Loaded: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def smallest(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def ahead(self) -> bool: ...

    def read(self, epoch: int, start: int, mine: Mine) -> Generator[Loaded | None]: ...
    def state_dict(self) -> dict[str, Any] | None: ...
    def go_on(self, done: int, state: dict[str, Any] | None) -> None: ...
    def close(self) -> None: ...


class OwnBatches:
    """What the first stage reads of a user's training and test data.

    Args:
        train: a data set, a DataLoader, an iterable data set, or a function that returns one, or a pair of
            training and test data; None to evaluate only.
        test: the same; None for no evaluation; or a number, to evaluate on such a share of the training
            data, chosen by a hash of the index, and train on the rest.
        seed: the run's.
        loading: how, where no DataLoader says so.
        steps: batches of an epoch of training data without a length; None if nobody knows.
        name: of the data.
        classes: their number; None if nobody knows.
        more: what else the run is to remember of the data.

    Raises:
        UserError: they are of another kind.
        DataError: the first samples cannot be used.
    """

    def __init__(
        self,
        train: Any,
        test: Any,
        *,
        seed: int,
        loading: Loading | None = None,
        steps: int | None = None,
        name: str = "own",
        classes: int | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        self._loading = loading or Loading()
        self._name, self._classes, self._more = name, classes, more or {}
        self._skipped: set[tuple[str, Any]] = set()
        train, test = _called(train, test)
        if isinstance(test, float):
            train, test = split_by_index(train, test)

        def part(what: str, given: Any) -> Part | None:
            if given is None:
                return None
            _check_kind(what, given)
            if is_iterable(given):
                return Stream(given, what, seed, self._loading, steps)
            return Samples(given, what, seed, self._loading)

        self._train, self._test = part("train", train), part("test", test)
        parts = [each for each in (self._train, self._test) if each is not None]
        if not parts:
            raise DataError("there is no test data: give some, or a function that returns some")
        self._first = self._batch(parts[0].first, "train" if self._train else "test", None)
        self.batch_size = max(each.batch_size for each in parts)
        """Rows of the largest batch."""
        self.steps_per_epoch = 0 if self._train is None else self._train.steps
        """Number of batches that a whole epoch yields."""
        self.smallest_batch = 0 if self._train is None else self._train.smallest
        """Rows of the smallest training batch."""

    @property
    def ahead(self) -> bool:
        """See :class:`~pipelocal.data.batches.Batches`."""
        return all(part.ahead for part in (self._train, self._test) if part is not None)

    def info(self, classes: int | None) -> DataInfo:
        """What a sample is like, as the first ones show it."""
        first = self._first
        beside = tuple(
            TensorKind(name=f"x{number}", shape=tuple(tensor.shape[1:]), dtype=tensor.dtype)
            for number, tensor in enumerate(first.beside, start=1)
        )
        return DataInfo(
            name=self._name,
            sample_shape=tuple(first.x.shape[1:]),
            classes=classes or self._classes,
            target_shape=tuple(first.target.shape[1:]),
            sample_dtype=first.x.dtype,
            target_dtype=first.target.dtype,
            beside=beside,
        )

    def describe(self) -> dict[str, Any]:
        """See :class:`~pipelocal.data.batches.Batches`; the fingerprint is of the first samples."""
        content = hashlib.sha256()
        for tensor in (self._first.x, *self._first.beside, self._first.target):
            content.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        counts = {
            f"{what}_samples": 0 if part is None else part.samples
            for what, part in (("train", self._train), ("test", self._test))
        }
        info = self.info(None).to_json()
        return {**info, **counts, **self._more, "fingerprint": content.hexdigest()}

    def training(self, epoch: int, start: int, mine: Mine) -> Generator[Batch | None]:
        """See :class:`~pipelocal.data.batches.Batches`."""
        assert self._train is not None
        return self._batches(self._train, "train", self._train.read(epoch, start, mine))

    def testing(self, mine: Mine) -> Generator[Batch | None]:
        """See :class:`~pipelocal.data.batches.Batches`."""
        if self._test is None:
            nothing: tuple[Batch, ...] = ()
            return (batch for batch in nothing)
        return self._batches(self._test, "test", self._test.read(0, 0, mine))

    def state_dict(self) -> dict[str, Any] | None:
        """See :class:`~pipelocal.data.batches.Batches`."""
        return None if self._train is None else self._train.state_dict()

    def go_on(self, done: int, state: dict[str, Any] | None) -> None:
        """See :class:`~pipelocal.data.batches.Batches`."""
        assert self._train is not None
        self._train.go_on(done, state)

    def close(self) -> None:
        """See :class:`~pipelocal.data.batches.Batches`."""
        for part in (self._train, self._test):
            if part is not None:
                part.close()

    def _batches(
        self, part: Part, what: str, read: Generator[Loaded | None]
    ) -> Generator[Batch | None]:
        seen = 0
        try:
            for each in read:
                batch = None if each is None else self._batch(each, what, part, seen)
                seen += part.batch_size
                yield batch
        finally:
            read.close()

    def _batch(self, loaded: Loaded, what: str, part: Part | None, seen: int = 0) -> Batch:
        """Return what was loaded as a stage takes it.

        Args:
            loaded: it.
            what: ``train`` or ``test``.
            part: whose it is; None for the very first.
            seen: samples before it, for ids where there are no indices.

        Raises:
            DataError: it is of another form, or samples could not be loaded.
        """
        self._skip(loaded, what)
        if loaded.trouble:
            raise DataError(f"{what}: {loaded.trouble}")
        x, *beside, target = loaded.tensors
        if part is not None:
            self._check_like_the_first(loaded.tensors, what)
            if len(x) > self.batch_size:
                raise DataError(
                    f"{what}: a batch of {len(x)} samples, after one of {self.batch_size}: have the loader "
                    f"yield its largest batch first, or batches of one size"
                )
        ids = torch.tensor(loaded.ids) if loaded.ids else torch.arange(seen, seen + len(x))
        return Batch(x, target, ids, tuple(beside))

    def _check_like_the_first(self, tensors: tuple[Tensor, ...], what: str) -> None:
        first = self._first
        expected = [_kind(each) for each in (first.x, *first.beside, first.target)]
        found = [_kind(each) for each in tensors]
        for now, then in zip(found, expected, strict=False):
            if now != then:
                raise DataError(
                    f"{what}: samples or targets of {now}, after ones of {then}: give all the same shape and "
                    f"dtype, cropped or padded in the data set or the collate function (texts to one "
                    f"length, as a tokenizer does with padding='max_length')"
                )
        if len(found) != len(expected):
            raise DataError(
                f"{what}: samples of {len(found)} tensors, after ones of {len(expected)}: give all of one "
                f"form, {FORMS}"
            )

    def _skip(self, loaded: Loaded, what: str) -> None:
        """Count the samples that could not be loaded, where they are to be skipped.

        Raises:
            DataError: they are not to be skipped, or nothing is left.
        """
        for each in loaded.failures:
            named = (
                each.reason if each.named else f"{what}: sample {each.index} failed ({each.reason})"
            )
            if self._loading.bad_samples == "error":
                raise DataError(
                    f"{named}: mend or remove it, or leave out such samples (--bad-samples skip)"
                )
            if (what, each.index) in self._skipped:
                continue
            self._skipped.add((what, each.index))
            count = len(self._skipped)
            if count <= SHOWN or count & (count - 1) == 0:
                tell(f"left out: {named}; {count} so far")
        if loaded.failures and not loaded.tensors and not loaded.trouble:
            raise DataError(
                f"{what}: no sample of a batch can be loaded ({loaded.failures[0].reason}): mend or remove "
                f"them, or give larger batches"
            )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape[1:])}"


def _called(train: Any, test: Any) -> tuple[Any, Any]:
    """Return the data that functions return."""

    def called(what: str, given: Any) -> Any:
        if not callable(given) or is_data(given):
            return given
        try:
            return given()
        except UserError:
            raise
        except Exception as error:
            name = getattr(given, "__qualname__", type(given).__name__)
            raise UserError(f"{what}: the function {name} failed ({told_error(error)})") from error

    train = called("train", train)
    if isinstance(train, tuple) and len(train) == 2 and test is None:
        train, test = train
    test = called("test", test)
    if isinstance(test, tuple) and len(test) == 2:
        test = test[1]
    return train, test


def is_data(given: Any) -> bool:
    """Whether something is data, and no function that returns them."""
    if isinstance(given, type | str | dict | Tensor):
        return False
    return isinstance(given, Dataset) or hasattr(given, "__getitem__") or hasattr(given, "__iter__")


def number_of_classes(dataset: Any) -> int | None:
    """Return the length of ``classes``, as torchvision's data sets have it; None if there is none."""
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset  # of a Subset or DataLoader
    classes = getattr(dataset, "classes", None)
    return len(classes) if isinstance(classes, list | tuple) else None


def _check_kind(what: str, given: Any) -> None:
    sized = hasattr(given, "__getitem__") and hasattr(given, "__len__")
    if isinstance(given, Dataset) and not is_iterable(given) and not sized:
        raise UserError(f"{what}: {type(given).__name__} has no __len__: give it one, or __iter__")
    if isinstance(given, dict | str | Tensor) or not (sized or hasattr(given, "__iter__")):
        raise UserError(
            f"{what}: {type(given).__name__} is no data: give a data set with __getitem__ and __len__, a "
            f"DataLoader, an IterableDataset, or a function that returns one"
        )


def first_samples(train: Any, count: int) -> Any:
    """The first so many samples of a map-style data set.

    Raises:
        DataError: there are fewer.
        UserError: it is none.
    """
    if is_iterable(train) or not hasattr(train, "__getitem__"):
        raise UserError("--train-samples is for data sets with __getitem__: leave it out")
    if count > len(train):
        raise DataError(
            f"{count} training samples are asked for, but there are {len(train)}: give --train-samples from "
            f"1 to that"
        )
    return Subset(train, range(count))
