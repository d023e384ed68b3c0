"""Data sets by name, and the batches that stage 1 reads from them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from pipelocal.data import digits, fashion_mnist, synthetic, text
from pipelocal.data.batches import Batch, BatchStream
from pipelocal.data.cifar import CIFAR10, CIFAR100
from pipelocal.data.dataset import ArrayDataset, DataInfo
from pipelocal.errors import DataError
from pipelocal.references import plain_name, returned, users_code
from pipelocal.registry import Registry
from pipelocal.seeding import seeded

DatasetLoader = Callable[[Path | None, int], ArrayDataset]
"""Called with the data root (None if the user gave none) and the run's seed."""


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
    """The entry for a reference to a loader; ``info`` is a placeholder until the data are loaded."""

    def __init__(self, name: str, load: DatasetLoader) -> None:
        super().__init__(DataInfo(name=name, sample_shape=(1,), classes=1), load)


class _DataSets(Registry[DatasetEntry]):
    """Registry of data sets; a reference may also name just a loader."""

    def _fitting(self, name: str, thing: Any) -> DatasetEntry:
        if isinstance(thing, DatasetEntry):
            return DatasetEntry(thing.info, partial(_load_own, name, thing.load))
        load = cast(DatasetLoader, super()._fitting(name, thing))
        return _LoaderAlone(name, partial(_load_own, name, load))


def _load_own(name: str, load: DatasetLoader, root: Path | None, seed: int) -> ArrayDataset:
    """Call a user's loader with seeded generators, so that every rank loads the same."""
    with seeded(seed, "data", plain_name(name)), users_code("data set", name):
        return returned(load(root, seed), ArrayDataset)


DATASETS: Registry[DatasetEntry] = _DataSets("data set", takes="root, seed")
for _entry in (
    DatasetEntry(digits.INFO, digits.load),
    DatasetEntry(fashion_mnist.INFO, fashion_mnist.load),
    DatasetEntry(CIFAR10.info, CIFAR10.load),
    DatasetEntry(CIFAR100.info, CIFAR100.load),
    DatasetEntry(synthetic.INFO, synthetic.load),
    *(DatasetEntry(source.info, source.load) for source in text.SOURCES),
):
    DATASETS.register(_entry.info.name)(_entry)


def data_info(name: str, *, root: str | Path | None = None, seed: int = 0) -> DataInfo:
    """Describe a data set; reads no file, except for a user's loader.

    Args:
        name: see :func:`load_dataset`, as for those below; they count only where it has to load.
        root: the folder with the files.
        seed: the run's seed.

    Raises:
        UserError: there is no data set called ``name``.
    """
    entry = DATASETS.get(name)
    if isinstance(entry, _LoaderAlone):
        return load_dataset(name, root=root, seed=seed).info
    return entry.info


def load_dataset(name: str, *, root: str | Path | None, seed: int) -> ArrayDataset:
    """Load a data set into memory. Nothing is downloaded, nothing is written.

    Args:
        name: a name in :data:`DATASETS`, or a reference to a :class:`DatasetEntry` or a loader.
        root: the folder with the files, or the file (``--data-root``); ``digits`` and
            ``synthetic`` need none and do not look at it.
        seed: the run's seed. Only ``synthetic`` depends on it.

    Raises:
        UserError: there is no data set called ``name``.
        DataError: the root is missing, or a file in it is missing, unreadable, truncated or
            corrupt; the text names it.
    """
    entry = DATASETS.get(name)
    try:
        return entry.load(None if root is None else Path(root), seed)
    except OSError as error:
        raise DataError(
            f"data set '{name}': {error.filename or root} cannot be read ({error.strerror or error}): "
            f"make it readable, or give another --data-root DIR"
        ) from error


__all__ = [
    "DATASETS",
    "DatasetEntry",
    "DatasetLoader",
    "data_info",
    "load_dataset",
    "ArrayDataset",
    "DataInfo",
    "Batch",
    "BatchStream",
]
