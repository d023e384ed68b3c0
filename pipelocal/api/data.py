"""The data that a Pipeline is given, and how they are opened where stage 1 lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader

from pipelocal.api.arguments import check_kinds
from pipelocal.data.batches import Batches
from pipelocal.data.dataset import DataInfo
from pipelocal.data.in_time import patience_of
from pipelocal.data.loading import BATCH_SIZE, Loading
from pipelocal.data.mixing import Mixed, Mixing
from pipelocal.data.own import OwnBatches
from pipelocal.errors import UserError
from pipelocal.run.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class Data:
    """The arguments of ``fit`` or ``evaluate`` that say what is read, and how; opens nothing."""

    train: Any = None
    test: Any = None
    loading: Loading
    mixing: Mixing = field(default_factory=Mixing)
    steps: int | None = None
    """Batches of an epoch of training data without a length."""

    def opener(self, seed: int, classes: int | None) -> Opener:
        """Return what opens the data, once."""
        return Opener(self, seed, classes)

    @property
    def text(self) -> dict[str, Any]:
        """What a run folder records of it; enough to see that a run goes on with the same."""
        given = self.train
        size = getattr(given, "batch_size", None) if isinstance(given, DataLoader) else None
        return {
            "data": _name(given),
            "batch_size": size or self.loading.batch_size or BATCH_SIZE,
            "mixup": self.mixing.mixup,
            "cutmix": self.mixing.cutmix,
        }


class Opener:
    """Opens data where they are needed, and not twice."""

    def __init__(self, data: Data, seed: int, classes: int | None) -> None:
        self._data, self._seed, self._classes = data, seed, classes
        self._own: OwnBatches | None = None

    def info(self) -> DataInfo:
        """Describe one sample of the data."""
        return self._data.mixing.described(self._opened().info(self._classes))

    def batches(self) -> Batches:
        """Return the batches."""
        own = self._opened()
        if not self._data.mixing or self._data.train is None:
            return own
        classes = self.info().known_classes
        return Mixed(own, self._data.mixing, classes, self._seed)

    def _opened(self) -> OwnBatches:
        if self._own is None:
            data = self._data
            self._own = OwnBatches(
                data.train, data.test, seed=self._seed, loading=data.loading, steps=data.steps
            )
        return self._own


def loading_of(
    options: RunOptions,
    *,
    given: Sequence[Any],
    batch_size: int | None,
    workers: int | None,
    columns: Sequence[str] | None,
    collate: Callable[[list[Any]], Any] | None,
    bad_samples: str = "error",
) -> Loading:
    """Check the arguments that say how data are loaded.

    Raises:
        UserError: one is out of range, or is the DataLoader's own to say.
    """
    check_kinds(batch_size=batch_size, workers=workers)
    said = {"batch_size": batch_size, "workers": workers, "collate": collate}
    for name, value in said.items():
        if value is not None and any(isinstance(each, DataLoader) for each in given):
            raise UserError(
                f"{name}={value}: the DataLoader says so itself: leave it out, or give its data set"
            )
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size={batch_size}: give at least 1")
    if workers is not None and not 0 <= workers <= MOST_WORKERS:
        raise UserError(f"workers={workers}: give 0 to {MOST_WORKERS}")
    if bad_samples not in ("error", "skip"):
        raise UserError(f"bad_samples={bad_samples!r}: give 'error' or 'skip'")
    if isinstance(columns, str) or (columns is not None and len(columns) < 2):
        raise UserError(
            f"columns={columns!r}: give the names of the inputs and, last, of the target, such as "
            f"('image', 'label')"
        )
    return Loading(
        batch_size=batch_size,
        workers=workers or 0,
        columns=None if columns is None else tuple(columns),
        collate=collate,
        bad_samples="skip" if bad_samples == "skip" else "error",
        patience_s=patience_of(options.timeout),
    )


MOST_WORKERS = 1024


def epoch_steps(epochs: int, max_steps: int | None) -> int | None:
    """Return the batches of an epoch of data without a length: equal parts of all batches."""
    return None if max_steps is None else -(-max_steps // epochs)


def _name(given: Any) -> str:
    data = getattr(given, "dataset", given) if isinstance(given, DataLoader) else given
    return str(getattr(data, "__qualname__", type(data).__name__))
