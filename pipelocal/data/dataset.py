"""A classification data set that lies in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from pipelocal.errors import DataError
from pipelocal.system.tensor_kind import TensorKind, dtype_name


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What is known of a data set before a file is read.

    Attributes:
        name: the name in the registry.
        sample_shape: shape of one sample, channels first, such as ``(3, 32, 32)``; ``(T,)`` for a
            sequence of tokens.
        classes: number of classes; labels are ``0 .. classes - 1``. None if targets are no classes,
            or their number is not known.
        target_shape: shape of the target of one sample: ``()`` for one label or number, ``(T,)`` for
            one per token, ``(H, W)`` for one per pixel.
        sample_dtype: dtype of the samples in a batch: float32, or int64 for tokens.
        target_dtype: dtype of the targets in a batch: int64 for labels, float32 for numbers.
        beside: further inputs of the model, such as an attention mask, in the order of its arguments.
        train_target: what targets of training batches are, if not the same as those of evaluation, such
            as the mixed labels of MixUp.
    """

    name: str
    sample_shape: tuple[int, ...]
    classes: int | None
    target_shape: tuple[int, ...] = ()
    sample_dtype: torch.dtype = torch.float32
    target_dtype: torch.dtype = torch.int64
    beside: tuple[TensorKind, ...] = ()
    train_target: TensorKind | None = None

    @property
    def tokens(self) -> bool:
        """Whether samples are token numbers, which are not normalised."""
        return self.sample_dtype == torch.int64

    @property
    def known_classes(self) -> int:
        """Number of classes.

        Raises:
            DataError: there are none, or nobody knows.
        """
        if self.classes is None:
            raise DataError(
                f"data set '{self.name}' has no classes: say what is to be learnt of it"
            )
        return self.classes

    @property
    def inputs(self) -> tuple[TensorKind, ...]:
        """What a sample holds without its target, the main input first."""
        x = TensorKind(name="x", shape=self.sample_shape, dtype=self.sample_dtype)
        return (x, *self.beside)

    @property
    def target(self) -> TensorKind:
        """What a target of evaluation is."""
        return TensorKind(name="target", shape=self.target_shape, dtype=self.target_dtype)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.name,
            "sample_shape": list(self.sample_shape),
            "classes": self.classes,
            "target_shape": list(self.target_shape),
            "sample_dtype": dtype_name(self.sample_dtype),
            "target_dtype": dtype_name(self.target_dtype),
            "beside": [kind.to_json() for kind in self.beside],
            "train_target": None if self.train_target is None else self.train_target.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`; what else there is is passed over."""
        return cls(
            name=values["name"],
            sample_shape=tuple(values["sample_shape"]),
            classes=values["classes"],
            target_shape=tuple(values["target_shape"]),
            sample_dtype=getattr(torch, values["sample_dtype"]),
            # Runs of earlier versions knew labels alone.
            target_dtype=getattr(torch, values.get("target_dtype", "int64")),
            beside=tuple(TensorKind.from_json(kind) for kind in values.get("beside", ())),
            train_target=TensorKind.from_json(mixed)
            if (mixed := values.get("train_target"))
            else None,
        )

    def __post_init__(self) -> None:
        no_class = self.classes is not None and self.classes < 1
        if not self.sample_shape or min(self.sample_shape) < 1 or no_class:
            raise DataError(
                f"data set '{self.name}': sample shape {self.sample_shape} and {self.classes} "
                f"classes; give at least one dimension, all of them positive, and one class"
            )
        if not self.sample_dtype.is_floating_point and self.sample_dtype != torch.int64:
            raise DataError(
                f"data set '{self.name}': samples of {self.sample_dtype}; batches hold "
                f"torch.float32 or another floating point, or torch.int64 for tokens"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayDataset:
    """A training and a test part, checked when made.

    Attributes:
        info: name, shapes and number of classes.
        train_x: ``[N, *sample_shape]``, uint8 or floating. uint8 means 0 to 255 for 0 to 1. Tokens
            are uint8 or int64 and mean themselves.
        train_y: ``[N, *target_shape]``, int64; for tokens also uint8; or of the info's floating dtype.
        test_x: ``[M, *sample_shape]``, of the dtype of ``train_x``; M may be 0, for no evaluation.
        test_y: ``[M, *target_shape]``, of the dtype of ``train_y``.
        mean: per channel (first dimension of a sample), of the data scaled to [0, 1] if it is
            uint8, else of the data as it is; empty for tokens.
        std: per channel, in the same scale.
        augment: the training part is augmented in batches: random crop after zero
            padding by 4 pixels, random horizontal flip.

    Raises:
        DataError: numbers of samples and labels differ, a label is out of range, a shape or dtype
            is not as said above, a value is not finite, or ``mean`` or ``std`` cannot be used.
    """

    info: DataInfo
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool = False

    def __post_init__(self) -> None:
        self._check_part("training", self.train_x, self.train_y)
        self._check_part("test", self.test_x, self.test_y)
        if self.test_x.dtype != self.train_x.dtype:
            raise self._error(
                f"training samples are {self.train_x.dtype} but test samples "
                f"{self.test_x.dtype}; give both the same dtype"
            )
        channels = 0 if self.info.tokens else self.info.sample_shape[0]
        if len(self.mean) != channels or len(self.std) != channels or min(self.std, default=1) <= 0:
            raise self._error(
                f"mean {self.mean} and std {self.std}; give one of each for {channels} channel(s), "
                f"every std positive"
            )
        if self.augment and not is_image(self.info.sample_shape):
            raise self._error(
                f"augment=True for samples of shape {self.info.sample_shape}; crops and flips need "
                f"(channels, height, width): set augment=False"
            )

    def training_part(self, seed: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002  others use it
        """Samples ``[N, *sample_shape]`` and labels ``[N, *target_shape]`` of one epoch.

        Args:
            seed: the epoch's own; data that is cut anew in every epoch is cut by it alone.
        """
        return self.train_x, self.train_y

    def training_order(self, samples: int, generator: torch.Generator) -> Tensor:
        """The order of an epoch's samples: a permutation ``[samples]``, int64.

        Batches are cut from it one after the other. Data that are not to be mixed, such as those of
        replicas that see different parts, have an order of their own here.

        Args:
            samples: of the epoch.
            generator: the epoch's own; an order that draws from it alone comes again in a run that goes on.
        """
        return torch.randperm(samples, generator=generator)

    def first(self, samples: int) -> Self:
        """The same with so many training samples, the first ones; the test part stays whole.

        Raises:
            DataError: there are fewer.
        """
        if samples > len(self.train_x):
            raise self._error(
                f"{samples} training samples are asked for, but there are {len(self.train_x)}: "
                f"give --train-samples from 1 to that"
            )
        return replace(self, train_x=self.train_x[:samples], train_y=self.train_y[:samples])

    def _check_part(self, part: str, x: Tensor, y: Tensor) -> None:
        if self.info.tokens:
            if x.dtype not in (torch.uint8, torch.int32, torch.int64):
                raise self._error(f"{part} samples are {x.dtype}; tokens are uint8, int32 or int64")
        elif x.dtype != torch.uint8 and not x.is_floating_point():
            raise self._error(f"{part} samples are {x.dtype}; give uint8 or a floating dtype")
        if tuple(x.shape[1:]) != self.info.sample_shape:
            raise self._error(
                f"{part} samples have shape {tuple(x.shape[1:])}; "
                f"the data set is described with {self.info.sample_shape}"
            )
        numbers = self.info.target_dtype.is_floating_point
        label_dtypes = (
            (torch.int64, torch.int32, torch.uint8) if self.info.tokens else (torch.int64,)
        )
        if numbers:
            label_dtypes = (self.info.target_dtype,)
        if y.dtype not in label_dtypes or y.ndim < 1 or y.shape[1:] != self.info.target_shape:
            wanted = ", ".join(["N", *map(str, self.info.target_shape)])
            raise self._error(
                f"{part} labels are {y.dtype} of shape {tuple(y.shape)}; "
                f"give {dtype_name(self.info.target_dtype)} of shape [{wanted}]"
            )
        if len(x) != len(y) or (len(x) == 0 and part == "training"):
            raise self._error(
                f"{len(x)} {part} samples but {len(y)} labels; give as many of both, at least one"
            )
        if len(x) == 0:  # no evaluation
            return
        for what, values in (("samples", x), ("targets", y)):
            if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                raise self._error(f"{part} {what} hold NaN or infinity; give finite values only")
        if numbers:
            return
        low, high = int(y.min()), int(y.max())
        if self.info.classes is not None and (low < 0 or high >= self.info.classes):
            raise self._error(
                f"{part} labels run from {low} to {high}; "
                f"{self.info.classes} classes allow 0 to {self.info.classes - 1}"
            )

    def _error(self, reason: str) -> DataError:
        return DataError(f"data set '{self.info.name}': {reason}")


def is_image(sample_shape: tuple[int, ...]) -> bool:
    """True for ``(channels, height, width)``, the shape that can be cropped and flipped."""
    return len(sample_shape) == 3
