"""Data sets whose test part is held out of the training data: what is chosen by it has seen no test data.

``pipelocal train --data benchmarks.held_out:cifar10``, in the repository's root.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from pipelocal.data import ArrayDataset, DatasetEntry, data_info, load_dataset

SHARE = 0.1
"""Of the training samples."""
SEED = 100
"""Of the runs on such data, and of no other."""
NAMES = ("digits", "fashion-mnist", "cifar10")


def _load(name: str, root: Path | None, seed: int) -> ArrayDataset:
    """Load a data set without its test part; the samples that are held out are the same for every seed."""
    whole = load_dataset(name, root=root, seed=seed)
    samples = len(whole.train_x)
    # At random: the digits lie in an order that repeats.
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    held = torch.zeros(samples, dtype=torch.bool)
    held[order[: int(SHARE * samples)]] = True
    x, y = whole.train_x, whole.train_y
    return replace(whole, train_x=x[~held], train_y=y[~held], test_x=x[held], test_y=y[held])


def _entry(name: str) -> DatasetEntry:
    info = data_info(name)
    return DatasetEntry(replace(info, name=f"{name}-held-out"), partial(_load, name))


digits, fashion_mnist, cifar10 = map(_entry, NAMES)


def reference(name: str) -> str:
    """What ``--data`` takes."""
    return f"benchmarks.held_out:{name.replace('-', '_')}"
