"""scikit-learn's handwritten digits: small, real, and there without a download."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelocal.data.dataset import ArrayDataset, DataInfo

INFO = DataInfo(name="digits", sample_shape=(1, 8, 8), classes=10)
TEST_EVERY = 5
"""Of each class, every fifth sample is for testing."""
_HIGHEST_VALUE = 16


def load(_root: Path | None, _seed: int) -> ArrayDataset:
    """The 1,797 digits as float32 in [0, 1], split the same way for every seed.

    The split counts within each class, so both parts hold the classes in the same proportions, and
    it needs no random generator, so it is the same with every version of every library.
    """
    table = _rows()
    x = torch.from_numpy(table[:, :-1].astype(np.float32) / _HIGHEST_VALUE).view(-1, 1, 8, 8)
    y = torch.from_numpy(table[:, -1].astype(np.int64))
    is_test = torch.zeros(len(y), dtype=torch.bool)
    for label in range(INFO.known_classes):
        members = torch.nonzero(y == label).flatten()
        is_test[members[TEST_EVERY - 1 :: TEST_EVERY]] = True
    return ArrayDataset(
        info=INFO,
        train_x=x[~is_test],
        train_y=y[~is_test],
        test_x=x[is_test],
        test_y=y[is_test],
        mean=(0.305,),
        std=(0.376,),
    )


def _rows() -> NDArray[np.float64]:
    """Read scikit-learn's table, of shape ``[1797, 65]``: 64 pixels from 0 to 16, and the label.

    Importing scikit-learn takes as long as all else of a short run, so only its file is read, where it is
    found.
    """
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
