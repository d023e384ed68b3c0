"""Data sets by name, and the batches that stage 1 reads from them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelocal.data import digits, fashion_mnist, synthetic, text
from pipelocal.data.batches import Batch, BatchStream
from pipelocal.data.cifar import CIFAR10, CIFAR100
from pipelocal.data.dataset import ArrayDataset, DataInfo
from pipelocal.errors import DataError
from pipelocal.registry import Registry

DatasetLoader = Callable[[Path | None, int], ArrayDataset]
"""Called with the data root (None if the user gave none) and the run's seed."""


@dataclass(frozen=True)
class DatasetEntry:
    """What stands behind a name.

    Attributes:
        info: known without reading a file.
        load: reads or makes the data set.
    """

    info: DataInfo
    load: DatasetLoader


DATASETS: Registry[DatasetEntry] = Registry("data set")
for _entry in (
    DatasetEntry(digits.INFO, digits.load),
    DatasetEntry(fashion_mnist.INFO, fashion_mnist.load),
    DatasetEntry(CIFAR10.info, CIFAR10.load),
    DatasetEntry(CIFAR100.info, CIFAR100.load),
    DatasetEntry(synthetic.INFO, synthetic.load),
    *(DatasetEntry(source.info, source.load) for source in text.SOURCES),
):
    DATASETS.register(_entry.info.name)(_entry)


def data_info(name: str) -> DataInfo:
    """Name, sample shape and number of classes of a data set; reads no file.

    Raises:
        UserError: there is no data set called ``name``.
    """
    return DATASETS.get(name).info


def load_dataset(name: str, *, root: str | Path | None, seed: int) -> ArrayDataset:
    """Load a data set into memory. Nothing is downloaded, nothing is written.

    Args:
        name: a name in :data:`DATASETS`.
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
