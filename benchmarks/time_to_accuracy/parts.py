"""Data sets whose epochs are quarters of a pass, so that a run is evaluated four times a pass.

``pipelocal train --data benchmarks/time_to_accuracy/parts.py:cifar10`` evaluates after each epoch as
always. Every pass has an order of its own, and its quarters share it out; a quarter is a whole number of
batches, so that an epoch's last batch is full. What a pass leaves over is left out of it alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipelocal.data import ArrayDataset, DatasetEntry, data_info, load_dataset
from pipelocal.seeding import derive_seed

PARTS = 4
"""Of a pass."""
MOST_PASSES = 1000
MULTIPLE = {"digits": 64, "fashion-mnist": 128, "cifar10": 128}
"""Samples of a part are a multiple of this, by data set: of the batch size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PartedDataset(ArrayDataset):
    """A data set whose epochs are parts of a pass.

    Attributes:
        whole_x: all training samples ``[N, *sample_shape]``; ``train_x`` has as many as a part.
        whole_y: their labels ``[N]``.
        epochs: number of the epoch by the seed of its part.
        seed: of the run.
    """

    whole_x: Tensor
    whole_y: Tensor
    epochs: dict[int, int]
    seed: int

    def training_part(self, seed: int) -> tuple[Tensor, Tensor]:
        """Samples and labels of an epoch's part of its pass."""
        pass_, part = divmod(self.epochs[seed], PARTS)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "pass", pass_))
        order = torch.randperm(len(self.whole_x), generator=generator)
        samples = len(self.train_x)
        ids = order[part * samples : (part + 1) * samples]
        return self.whole_x[ids], self.whole_y[ids]


def samples_of_a_part(name: str, samples: int) -> int:
    """Of so many training samples."""
    return samples // PARTS // MULTIPLE[name] * MULTIPLE[name]


def _load(name: str, tested: bool, root: Path | None, seed: int) -> ArrayDataset:
    whole = load_dataset(name, root=root, seed=seed)
    samples = samples_of_a_part(name, len(whole.train_x))
    epochs = range(MOST_PASSES * PARTS)
    return PartedDataset(
        info=whole.info,
        train_x=whole.train_x[:samples],
        train_y=whole.train_y[:samples],
        test_x=whole.test_x if tested else whole.test_x[:0],
        test_y=whole.test_y if tested else whole.test_y[:0],
        mean=whole.mean,
        std=whole.std,
        augment=whole.augment,
        whole_x=whole.train_x,
        whole_y=whole.train_y,
        epochs={derive_seed(seed, "part", epoch): epoch for epoch in epochs},
        seed=seed,
    )


def _entry(name: str, *, tested: bool = True) -> DatasetEntry:
    info = data_info(name)
    return DatasetEntry(replace(info, name=f"{name}-parts"), partial(_load, name, tested))


digits, fashion_mnist, cifar10 = (_entry(name) for name in MULTIPLE)
digits_untested, fashion_mnist_untested, cifar10_untested = (
    _entry(name, tested=False) for name in MULTIPLE
)


def reference(name: str, *, tested: bool = True) -> str:
    """What ``--data`` takes; without test data a run ends with its training."""
    return f"{Path(__file__).resolve()}:{name.replace('-', '_')}{'' if tested else '_untested'}"
