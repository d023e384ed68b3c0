"""Data sets by name, and the batches that stage 1 reads from them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from pipelocal.data import digits, fashion_mnist, image_folder, synthetic, tables, text
from pipelocal.data.batches import Batch, BatchStream
from pipelocal.data.cifar import CIFAR10, CIFAR100
from pipelocal.data.dataset import ArrayDataset, DataInfo
from pipelocal.data.options import DataOptions
from pipelocal.data.own import is_data, number_of_classes
from pipelocal.data.ready import Ready
from pipelocal.errors import DataError, UserError
from pipelocal.references import plain_name, users_code
from pipelocal.registry import Registry
from pipelocal.seeding import seeded

DatasetLoader = Callable[[Path | None, int], Any]
"""Called with the data root (None if the user gave none) and the run's seed; returns an
:class:`ArrayDataset`, or what ``Pipeline.fit`` takes: training data, or a pair with test data."""

ReadyLoader = Callable[[Path | None, int, DataOptions], ArrayDataset | Ready]
"""The same of a data set that options change."""


@dataclass(frozen=True)
class DatasetEntry:
    """The entry of a data set in the registry.

    Attributes:
        info: description, known without reading a file.
        load: reads or generates the data set.
    """

    info: DataInfo
    load: DatasetLoader


class _LoaderAlone(DatasetEntry):
    """The entry for a loader alone; ``info`` is a placeholder until the data are loaded."""

    def __init__(self, name: str, load: DatasetLoader) -> None:
        super().__init__(DataInfo(name=name, sample_shape=(1,), classes=1), load)


class _WithOptions(_LoaderAlone):
    """The entry of a data set that options change."""

    def __init__(self, name: str, ready: ReadyLoader) -> None:
        super().__init__(name, lambda root, seed: ready(root, seed, DataOptions()))
        object.__setattr__(self, "ready", ready)

    ready: ReadyLoader


class _Text(_WithOptions):
    """The entry of a text, whose description depends on the tokenizer alone."""

    def __init__(self, source: text.TextSource) -> None:
        super().__init__(source.name, source.load)
        object.__setattr__(self, "info", source.info)
        object.__setattr__(self, "info_with", source.info_with)

    info_with: Callable[[str | None], DataInfo]


class _DataSets(Registry[DatasetEntry]):
    """Registry of data sets; a reference may also name just a loader, or the data themselves."""

    def _fitting(self, name: str, thing: Any) -> DatasetEntry:
        if isinstance(thing, DatasetEntry):
            return DatasetEntry(thing.info, partial(_load_own, name, thing.load))
        if is_data(thing):
            return _LoaderAlone(name, partial(_load_own, name, lambda _root, _seed: thing))
        load = cast(DatasetLoader, super()._fitting(name, thing))
        return _LoaderAlone(name, partial(_load_own, name, load))


def _load_own(name: str, load: DatasetLoader, root: Path | None, seed: int) -> ArrayDataset | Ready:
    """Call a user's loader with seeded generators, so that every rank loads the same."""
    with seeded(seed, "data", plain_name(name)), users_code("data set", name):
        try:
            found = load(root, seed)
        except SystemExit as error:
            raise UserError(f"it ended the program (exit code {error.code})") from error
        pair = isinstance(found, tuple) and len(found) == 2
        train, test = found if pair else (found, None)
        if isinstance(found, ArrayDataset):
            return found
        if not is_data(train):
            raise UserError(
                f"returned {type(found).__name__}: return a data set, a DataLoader, or a pair of training "
                f"and test data"
            )
        return Ready(name="own", train=train, test=test, classes=number_of_classes(train))


DATASETS: Registry[DatasetEntry] = _DataSets("data set", takes="root, seed")
for _entry in (
    DatasetEntry(digits.INFO, digits.load),
    DatasetEntry(fashion_mnist.INFO, fashion_mnist.load),
    DatasetEntry(CIFAR10.info, CIFAR10.load),
    DatasetEntry(CIFAR100.info, CIFAR100.load),
    DatasetEntry(synthetic.INFO, synthetic.load),
    *(_Text(source) for source in text.SOURCES),
    _WithOptions(image_folder.NAME, image_folder.load),
    *(_WithOptions(_name, partial(tables.load, _name)) for _name in ("csv", "npz")),
):
    DATASETS.register(_entry.info.name)(_entry)


def known_info(options: DataOptions) -> DataInfo | None:
    """What is known of the data before a file of theirs is read; None if nothing is.

    Raises:
        UserError: there is no such data set, or no such tokenizer.
    """
    entry = DATASETS.get(options.data)
    if isinstance(entry, _Text):
        return entry.info_with(options.tokenizer)
    return None if isinstance(entry, _LoaderAlone) else entry.info


def find_data(options: DataOptions, seed: int) -> ArrayDataset | Ready:
    """Find the data that options name. Nothing is downloaded, nothing is written.

    Raises:
        UserError: there is no data set of that name.
        DataError: the root is missing, or a file in it is missing, unreadable, truncated or
            corrupt; the text names it.
    """
    name = options.data
    entry = DATASETS.get(name)
    root = None if options.data_root is None else Path(options.data_root)
    try:
        if isinstance(entry, _WithOptions):
            return entry.ready(root, seed, options)
        found: ArrayDataset | Ready = entry.load(root, seed)
    except OSError as error:
        raise DataError(
            f"data set '{name}': {error.filename or root} cannot be read ({error.strerror or error}): "
            f"make it readable, or give another --data-root DIR"
        ) from error
    return found


def data_info(name: str, *, root: str | Path | None = None, seed: int = 0) -> DataInfo:
    """Describe a data set in memory; reads no file, except where nothing is known without.

    Args:
        name: see :func:`load_dataset`, as for those below; they count only where it has to load.
        root: the folder with the files.
        seed: the run's seed.

    Raises:
        UserError: there is no data set called ``name``.
    """
    known = known_info(DataOptions(data=name))
    return load_dataset(name, root=root, seed=seed).info if known is None else known


def load_dataset(name: str, *, root: str | Path | None, seed: int) -> ArrayDataset:
    """Load a data set into memory. Nothing is downloaded, nothing is written.

    Args:
        name: a name in :data:`DATASETS`, or a reference to a :class:`DatasetEntry` or a loader.
        root: the folder with the files, or the file (``--data-root``); ``digits`` and
            ``synthetic`` need none and do not look at it.
        seed: the run's seed. Only ``synthetic`` depends on it.

    Raises:
        UserError: there is no data set called ``name``, or its samples are read one by one.
        DataError: see :func:`find_data`.
    """
    where = None if root is None else str(root)
    found = find_data(DataOptions(data=name, data_root=where), seed)
    if isinstance(found, Ready):
        raise UserError(
            f"data set '{name}' is read sample by sample, and does not lie in memory: use it by train"
        )
    return found


__all__ = [
    "DATASETS",
    "DatasetEntry",
    "DatasetLoader",
    "data_info",
    "find_data",
    "known_info",
    "load_dataset",
    "ArrayDataset",
    "DataInfo",
    "DataOptions",
    "Batch",
    "BatchStream",
    "Ready",
]
