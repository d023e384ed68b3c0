"""MixUp and CutMix: training batches of which each sample is mixed with another of the same batch.

Targets become shares of the classes. What is drawn depends on (seed, epoch, step) alone.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelocal.data.batches import Batch, Batches, Mine
from pipelocal.data.dataset import DataInfo, is_image
from pipelocal.errors import DataError, UserError
from pipelocal.seeding import derive_seed
from pipelocal.system.tensor_kind import TensorKind


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How samples are mixed; with both given, half of the batches each.

    Args:
        mixup: alpha of the Beta distribution of the share of the first sample; None for no MixUp.
        cutmix: the same for the area that is left of the first sample; None for no CutMix.
    """

    mixup: float | None = None
    cutmix: float | None = None

    def __bool__(self) -> bool:
        return self.mixup is not None or self.cutmix is not None

    def described(self, info: DataInfo) -> DataInfo:
        """Return what the data are like, with the targets of mixed batches.

        Raises:
            UserError: such data cannot be mixed.
        """
        if not self:
            return info
        if info.classes is None or info.target_shape or info.target_dtype != torch.int64:
            raise UserError(
                f"--mixup and --cutmix mix targets that are one class for each sample, and those of "
                f"'{info.name}' are {info.target_dtype} {list(info.target_shape)}"
                f"{'' if info.classes else ' of an unknown number of classes'}: leave them out, or say "
                f"how many classes there are"
            )
        if info.tokens or info.beside:
            raise UserError(
                "--mixup and --cutmix mix images or vectors, not tokens: leave them out"
            )
        if self.cutmix is not None and not is_image(info.sample_shape):
            raise UserError(
                f"--cutmix is for images (channels, height, width), and samples are {info.sample_shape}: "
                f"give --mixup"
            )
        kind = TensorKind(name="target", shape=(info.classes,), dtype=torch.float32)
        return replace(info, train_target=kind)

    def mix(self, batch: Batch, classes: int, seed: int) -> Batch:
        """Return the batch with its samples mixed and targets float32 ``[B, classes]``.

        Args:
            batch: samples ``[B, ...]`` and classes ``[B]``.
            classes: number of classes.
            seed: the outcome depends on nothing but this and the batch.

        Raises:
            DataError: a label is not one of the classes, such as one that a loss would ignore.
        """
        refused = (batch.target < 0) | (batch.target >= classes)
        if bool(refused.any()):
            samples = ", ".join(map(str, batch.ids[refused].tolist()[:5]))
            low, high = batch.target.aminmax()
            raise DataError(
                f"a training batch (sample {samples}): labels run from {low} to {high}, but of {classes} "
                f"classes 0 to {classes - 1} can be mixed: leave such samples out, or --mixup and --cutmix"
            )
        draw = np.random.Generator(np.random.PCG64(seed))
        other = torch.from_numpy(draw.permutation(len(batch.x)))
        cut = self.cutmix is not None and (self.mixup is None or bool(draw.integers(2)))
        alpha = self.cutmix if cut else self.mixup
        assert alpha is not None
        share = float(draw.beta(alpha, alpha))
        if cut:
            x, share = _pasted(batch.x, other, share, draw)
        else:
            x = batch.x.lerp(batch.x[other], 1 - share)
        shares = F.one_hot(batch.target, classes).float()
        return replace(batch, x=x, target=shares.lerp(shares[other], 1 - share))


def _pasted(
    x: Tensor, other: Tensor, share: float, draw: np.random.Generator
) -> tuple[Tensor, float]:
    """Return images with a box of others in them, and the share of the area that is left."""
    height, width = x.shape[-2:]
    side = (1 - share) ** 0.5
    tall, wide = round(height * side), round(width * side)
    middle, centre = int(draw.integers(height)), int(draw.integers(width))
    top, bottom = max(0, middle - tall // 2), min(height, middle - tall // 2 + tall)
    left, right = max(0, centre - wide // 2), min(width, centre - wide // 2 + wide)
    x = x.clone()
    x[..., top:bottom, left:right] = x[other, ..., top:bottom, left:right]
    return x, 1 - (bottom - top) * (right - left) / (height * width)


class Mixed:
    """Batches of which those for training are mixed.

    Args:
        batches: the batches as they are.
        mixing: how.
        classes: number of classes.
        seed: the run's.
    """

    def __init__(self, batches: Batches, mixing: Mixing, classes: int, seed: int) -> None:
        self._batches, self._mixing = batches, mixing
        self._classes, self._seed = classes, seed
        self.steps_per_epoch = batches.steps_per_epoch
        self.batch_size = batches.batch_size
        self.smallest_batch = batches.smallest_batch

    @property
    def ahead(self) -> bool:
        """See :class:`~pipelocal.data.batches.Batches`; mixing is work that a thread can do."""
        return self._batches.ahead

    def training(self, epoch: int, start: int, mine: Mine) -> Generator[Batch | None]:
        """See :class:`~pipelocal.data.batches.Batches`."""
        return self._mixed(self._batches.training(epoch, start, mine), epoch, start)

    def _mixed(
        self, batches: Generator[Batch | None], epoch: int, start: int
    ) -> Generator[Batch | None]:
        try:
            for step, batch in enumerate(batches, start):
                if batch is None:
                    yield None
                    continue
                seed = derive_seed(self._seed, "mix", epoch, step)
                yield self._mixing.mix(batch, self._classes, seed)
        finally:
            batches.close()

    def testing(self, mine: Mine) -> Generator[Batch | None]:
        """See :class:`~pipelocal.data.batches.Batches`; never mixed."""
        return self._batches.testing(mine)

    def describe(self) -> dict[str, Any]:
        """See :class:`~pipelocal.data.batches.Batches`."""
        kind = TensorKind(name="target", shape=(self._classes,), dtype=torch.float32)
        return {**self._batches.describe(), "train_target": kind.to_json()}

    def state_dict(self) -> dict[str, Any] | None:
        """See :class:`~pipelocal.data.batches.Batches`."""
        return self._batches.state_dict()

    def go_on(self, done: int, state: dict[str, Any] | None) -> None:
        """See :class:`~pipelocal.data.batches.Batches`."""
        self._batches.go_on(done, state)

    def close(self) -> None:
        """See :class:`~pipelocal.data.batches.Batches`."""
        self._batches.close()
