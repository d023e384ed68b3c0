"""The options that say which data, in which batches, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelocal.options import BATCHES, BELOW_ONE, POSITIVE, Limits, option

MOST_WORKERS = 1024
SHARE_OF_TESTS = Limits(POSITIVE, BELOW_ONE, "a share between 0 and 1, such as 0.1")
ALPHA = Limits(1e-3, 1e3, "a number from 0.001, such as 0.2 or 1")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which data, and in which batches."""

    data: str = "digits"
    """Data set: digits (comes with scikit-learn); from --data-root: fashion-mnist, cifar10, cifar100,
    imagefolder (images in train/CLASS and val/CLASS), csv or npz (tables), text (bytes in sequences of
    128; text16 to text1024 for other lengths); synthetic; or your own."""
    data_root: str | None = option(None, of_the_bits=False, alike=False)
    """Folder that holds the files of the data set, or for text and tables the file itself; nothing is
    downloaded."""
    image_size: int = option(224, limits=Limits(1, 16384))
    """Height and width of the images of imagefolder, in pixels."""
    rand_augment: bool = option(False, seldom=True)
    """Augment the training images of imagefolder by RandAugment too, besides crops and flips."""
    tokenizer: str | None = None
    """For text: a tokenizer.json of Hugging Face's tokenizers (an extra); by default tokens are bytes."""
    test_split: float | None = option(None, limits=SHARE_OF_TESTS)
    """Share of the training data to test on, where there are no test data, chosen by a hash of the path
    or index; without it such data are not evaluated."""
    workers: int | None = option(
        None, limits=Limits(0, MOST_WORKERS), of_the_bits=False, alike=False
    )
    """Processes that load samples ahead of the training, where they are read one by one; with 0 the
    first stage loads them itself. By default 1 for imagefolder, 0 for your own. The bits are the same."""
    bad_samples: Literal["error", "skip"] = "error"
    """What to do with samples that cannot be loaded, such as broken images: error, or skip (leave them
    out and count them)."""
    train_samples: int | None = option(None, limits=BATCHES)
    """Train on the first so many samples only, to study small data; the test part stays whole."""
    batch_size: int = option(64, limits=Limits(1, 10**7))
    """Samples in a batch."""
    drop_last: bool = option(False, seldom=True)
    """Leave out the last batch of an epoch if it is not full; by default it is trained on as it is."""
    mixup: float | None = option(None, limits=ALPHA)
    """MixUp: mix each training sample with another of its batch, by shares from a Beta distribution of
    this alpha, such as 0.2; with --cutmix too, each in half of the batches."""
    cutmix: float | None = option(None, limits=ALPHA)
    """CutMix: replace a box in each training image by another's, by areas from such a distribution."""
