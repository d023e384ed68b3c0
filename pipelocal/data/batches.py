"""Batches in an order that a resumed run reproduces bit for bit."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipelocal.data.augment import random_crop_flip
from pipelocal.data.dataset import ArrayDataset
from pipelocal.data.fingerprint import describe_data
from pipelocal.errors import UserError
from pipelocal.seeding import derive_seed

WORTH_A_THREAD = 2**20
"""Bytes of a batch from which on a thread prepares it ahead."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples with what belongs to them.

    Attributes:
        x: ``[B, *sample_shape]``, contiguous: float32 and normalised per channel, or int64 tokens.
        target: ``[B, *target_shape]``, int64 for classes (of the sample, or of each token or pixel).
        ids: ``[B]``, int64, index of the sample in its part of the data set.
        beside: ``[B, ...]`` each, of any dtype: further inputs of the model, such as an attention mask.
    """

    x: Tensor
    target: Tensor
    ids: Tensor
    beside: tuple[Tensor, ...] = ()


Mine = Callable[[int], bool]
"""Whether this rank needs a batch, by its step in the epoch or evaluation; replicas share the batches."""


class Batches(Protocol):
    """The source of the first stage; each batch depends only on epoch and step."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches that a whole epoch yields."""

    @property
    def batch_size(self) -> int:
        """Rows of the largest batch."""

    @property
    def smallest_batch(self) -> int:
        """Rows of the smallest training batch."""

    @property
    def ahead(self) -> bool:
        """Whether a thread may prepare batches ahead of the stage, and it is worth it.

        Not where making them draws from torch's, Python's or NumPy's own generators in this process, from
        which the stage draws too.
        """

    def training(self, epoch: int, start: int, mine: Mine) -> Generator[Batch | None]:
        """Yield the training batches of one epoch, from step ``start`` on; None for those of others."""

    def testing(self, mine: Mine) -> Generator[Batch | None]:
        """Yield the test batches, None for those of others; nothing without test data."""

    def describe(self) -> dict[str, Any]:
        """What a run remembers of its data, a ``fingerprint`` of the content among it; see
        :func:`~pipelocal.data.fingerprint.describe_data`."""

    def state_dict(self) -> dict[str, Any] | None:
        """State of the training data behind the last batch; None if a step says all."""

    def go_on(self, done: int, state: dict[str, Any] | None) -> None:
        """Go on behind the first ``done`` batches of a run, before any is read.

        Args:
            done: training batches of all epochs before, which may have been of another length.
            state: the :meth:`state_dict` behind them, if there was one.
        """

    def close(self) -> None:
        """Let go of what loads."""


def everything(_step: int) -> bool:
    """See :data:`Mine`: all batches."""
    return True


class BatchStream:
    """Batches of a data set in memory.

    What :meth:`train` yields depends on the data, ``batch_size``, ``seed``, ``epoch`` and the
    step alone, never on what was read before: a run may stop and go on anywhere.

    Args:
        dataset: where the samples come from.
        batch_size: samples in a batch, 1 to the size of the training set.
        seed: of the order and of the augmentation.
        drop_last: leave out the last training batch if it is smaller than ``batch_size``. The test
            set is always read whole.

    Raises:
        UserError: ``batch_size`` is out of range.
    """

    def __init__(
        self,
        dataset: ArrayDataset,
        *,
        batch_size: int,
        seed: int,
        drop_last: bool = False,
    ) -> None:
        size = len(dataset.train_x)
        if not 1 <= batch_size <= size:
            raise UserError(
                f"batch size {batch_size} for a training set of {size} samples: "
                f"give a batch size from 1 to {size}"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        """Rows of a batch that is full."""
        self._seed = seed
        whole, rest = divmod(size, batch_size)
        self.steps_per_epoch = whole + (1 if rest and not drop_last else 0)
        """Number of batches that a whole epoch yields."""
        self.smallest_batch = rest if rest and not drop_last else batch_size
        """Rows of the smallest training batch."""
        unit = 255.0 if dataset.train_x.dtype == torch.uint8 else 1.0
        # Tokens have neither; their batches do not come here.
        per_channel = (-1, *[1] * (len(dataset.info.sample_shape) - 1))
        mean = torch.tensor(dataset.mean, dtype=torch.float64).view(per_channel)
        std = torch.tensor(dataset.std, dtype=torch.float64).view(per_channel)
        self._centre = (mean * unit).float()
        self._scale = (1 / (std * unit)).float()

    @property
    def ahead(self) -> bool:
        """See :class:`Batches`; cheap batches are made when they are needed."""
        row_bytes = self.dataset.train_x[:1].numel() * 4
        return self.dataset.augment or self.batch_size * row_bytes >= WORTH_A_THREAD

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The training batches of one epoch, from step ``start`` on; see :meth:`training`."""
        return filter(None, self.training(epoch, start))

    def training(
        self, epoch: int, start: int = 0, mine: Mine = everything
    ) -> Generator[Batch | None]:
        """The training batches of one epoch, from step ``start`` on; those of others cost nothing.

        Args:
            epoch: number of the epoch; each has an order and an augmentation of its own.
            start: the first step to yield, 0 to ``steps_per_epoch`` (which yields none).
            mine: see :data:`Mine`.

        Raises:
            UserError: ``start`` is out of range; raised here, not at the first batch.
        """
        if not 0 <= start <= self.steps_per_epoch:
            raise UserError(
                f"start at step {start} of an epoch of {self.steps_per_epoch} steps: "
                f"give 0 to {self.steps_per_epoch}, and resume with the batch size of the first run"
            )
        return self._training(epoch, start, mine)

    def _training(self, epoch: int, start: int, mine: Mine) -> Generator[Batch | None]:
        samples, targets = self.dataset.training_part(derive_seed(self._seed, "part", epoch))
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
        order = self.dataset.training_order(len(samples), generator)
        for step in range(start, self.steps_per_epoch):
            if not mine(step):
                yield None
                continue
            ids = order[step * self.batch_size : (step + 1) * self.batch_size].clone()
            x = samples[ids]
            if self.dataset.augment:
                x = random_crop_flip(x, seed=derive_seed(self._seed, "augment", epoch, step))
            yield Batch(self._ready(x), self._targets(targets[ids]), ids)

    def test(self) -> Iterator[Batch]:
        """The test batches in the order of the test set, the last with its true size."""
        return filter(None, self.testing())

    def testing(self, mine: Mine = everything) -> Generator[Batch | None]:
        """The test batches; those of others are None, and cost nothing."""
        firsts = range(0, len(self.dataset.test_x), self.batch_size)
        for step, first in enumerate(firsts):
            yield self._test_batch(first) if mine(step) else None

    def describe(self) -> dict[str, Any]:
        """See :class:`Batches`."""
        return describe_data(self.dataset)

    def state_dict(self) -> None:
        """See :class:`Batches`."""

    def go_on(self, _done: int, _state: dict[str, Any] | None) -> None:
        """See :class:`Batches`."""

    def close(self) -> None:
        """See :class:`Batches`."""

    def _test_batch(self, first: int) -> Batch:
        data, here = self.dataset, slice(first, first + self.batch_size)
        target = self._targets(data.test_y[here])
        ids = torch.arange(first, first + len(target))
        return Batch(self._ready(data.test_x[here]), target, ids)

    def _targets(self, y: Tensor) -> Tensor:
        return y.to(self.dataset.info.target_dtype, copy=True)

    def _ready(self, x: Tensor) -> Tensor:
        if self.dataset.info.tokens:
            return x.to(torch.int64, copy=True).contiguous()
        # Not in place: .float() of a float32 slice is the data set's own memory.
        return (x.float() - self._centre).mul_(self._scale).contiguous()
