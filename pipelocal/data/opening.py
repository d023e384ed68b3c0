"""Opens the data that the options of the command line name, once in a process."""

from __future__ import annotations

from functools import cached_property

from pipelocal.data import ArrayDataset, BatchStream, DataInfo, Ready, find_data, known_info
from pipelocal.data.batches import Batches
from pipelocal.data.loading import Loading
from pipelocal.data.mixing import Mixed, Mixing
from pipelocal.data.options import DataOptions
from pipelocal.data.own import OwnBatches, first_samples
from pipelocal.errors import UserError
from pipelocal.options import option_name


class NamedData:
    """The data of a training by ``--data``.

    Args:
        options: which, and how they are read.
        seed: the run's.
        steps: batches of an epoch of data without a length; None if nobody knows.
        patience_s: most seconds to wait for a worker.
    """

    def __init__(
        self, options: DataOptions, seed: int, *, steps: int | None = None, patience_s: float = 0.0
    ) -> None:
        self._options, self._seed = options, seed
        self._steps, self._patience_s = steps, patience_s
        self._mixing = Mixing(mixup=options.mixup, cutmix=options.cutmix)

    def info(self) -> DataInfo:
        """Describe the data; reads files only if nothing is known without."""
        known = known_info(self._options)
        if known is None:
            found = self.found
            known = found.info if isinstance(found, ArrayDataset) else self._own.info(None)
        return self._mixing.described(known)

    @cached_property
    def found(self) -> ArrayDataset | Ready:
        """The data set, or as much of it as is asked for."""
        options = self._options
        _check_asked(options)
        found = find_data(options, self._seed)
        if isinstance(found, ArrayDataset):
            _check_read_one_by_one(options)
        if isinstance(found, Ready):
            if options.train_samples is None:
                return found
            return found.with_train(first_samples(found.train, options.train_samples))
        if options.test_split is not None and options.data not in SPLIT:
            raise UserError(
                f"--test-split {options.test_split:g}: data set '{options.data}' is split by itself: leave "
                f"it out"
            )
        return found if options.train_samples is None else found.first(options.train_samples)

    def batches(self) -> Batches:
        """Return the batches."""
        options, found = self._options, self.found
        batches: Batches
        if isinstance(found, Ready):
            batches = self._own
        else:
            batches = BatchStream(
                found,
                batch_size=options.batch_size,
                seed=self._seed,
                drop_last=options.drop_last,
            )
        if not self._mixing:
            return batches
        return Mixed(batches, self._mixing, self.info().known_classes, self._seed)

    @cached_property
    def _own(self) -> OwnBatches:
        options, found = self._options, self.found
        assert isinstance(found, Ready)
        split = options.test_split is not None and found.test is None
        return OwnBatches(
            found.train,
            options.test_split if split else found.test,
            seed=self._seed,
            loading=Loading(
                batch_size=options.batch_size,
                workers=found.workers if options.workers is None else options.workers,
                bad_samples=options.bad_samples,
                drop_last=options.drop_last,
                patience_s=self._patience_s,
            ),
            steps=self._steps,
            name=found.name,
            classes=found.classes,
            more=found.more,
        )


ASKED_BY = {"image_size": "imagefolder", "rand_augment": "imagefolder", "tokenizer": "text"}
"""Options that only some data look at, by how the names of those begin."""

WITHOUT_FILES = ("digits", "synthetic")
"""Data sets that read no file of the user's."""

READ_ONE_BY_ONE = ("workers", "bad_samples")
"""Options that only data look at whose samples are read one by one."""

SPLIT = ("csv", "npz")
"""Data sets in memory whose loader itself splits a test part off."""


def _check_asked(options: DataOptions) -> None:
    """Refuse options that the data would not look at.

    Raises:
        UserError: there is one.
    """
    for name, kind in ASKED_BY.items():
        value = getattr(options, name)
        if value != getattr(DataOptions(), name) and not options.data.startswith(kind):
            raise UserError(
                f"{option_name(name)} {value}: it is for --data {kind}, and not for {options.data}: leave it "
                f"out"
            )
    if options.data_root is not None and options.data in WITHOUT_FILES:
        raise UserError(
            f"--data-root {options.data_root}: data set '{options.data}' reads no files: leave it out, or "
            f"name your data by --data"
        )


def _check_read_one_by_one(options: DataOptions) -> None:
    """Refuse options of the reading of single samples, for data that lie in memory.

    Raises:
        UserError: there is one.
    """
    for name in READ_ONE_BY_ONE:
        value = getattr(options, name)
        if value != getattr(DataOptions(), name):
            raise UserError(
                f"{option_name(name)} {value}: data set '{options.data}' lies in memory, and no sample of it "
                f"is read by itself: leave it out"
            )
