"""scikit-learn's handwritten digits: small, real, and there without a download."""

from pathlib import Path

import numpy as np
import torch

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
    from sklearn.datasets import load_digits  # here: the import is slow and seldom needed

    digits = load_digits()
    x = torch.from_numpy(np.asarray(digits.images, np.float32) / _HIGHEST_VALUE).unsqueeze(1)
    y = torch.from_numpy(np.asarray(digits.target, np.int64))
    is_test = torch.zeros(len(y), dtype=torch.bool)
    for label in range(INFO.classes):
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
