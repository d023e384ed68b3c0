"""From the samples of a user's data set to the tensors of a batch: what runs where samples are loaded.

A worker process hands on nothing but :class:`Loaded`, also when something fails: the error is one line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate, default_convert

from pipelocal.errors import DataError
from pipelocal.references import where

Collate = Callable[[list[Any]], Any]
"""Makes a batch of samples."""

FORMS = "(x, target), (x, ..., target) or ((x, ...), target)"


@dataclass(frozen=True)
class Failure:
    """A sample that could not be loaded."""

    index: Any
    reason: str
    named: bool = False
    """Whether the reason names the sample by itself, such as a file."""

    @classmethod
    def of(cls, index: Any, error: BaseException) -> Failure:
        """Describe an error in words, as its traceback would be lost between processes."""
        if isinstance(error, DataError):
            return cls(index, str(error), named=True)
        return cls(index, told_error(error))


@dataclass
class Loaded:
    """What loading a batch led to."""

    tensors: tuple[Tensor, ...] = ()
    """x, the others beside it, target; empty if ``trouble`` or no sample is left."""
    ids: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    trouble: str = ""
    """Why the samples are no batch."""


@dataclass(frozen=True)
class Collator:
    """Makes batches of samples.

    Args:
        collate: the user's own; None for torch's.
        columns: names of the inputs and, last, the target, of samples that are dicts; None for others.
        batches: whether a sample is a whole batch by itself.
    """

    collate: Collate | None = None
    columns: tuple[str, ...] | None = None
    batches: bool = False

    def __call__(self, samples: Sequence[Any]) -> tuple[Tensor, ...]:
        """Return x, the tensors beside it, and the target.

        Raises:
            DataError: the samples make no batch.
        """
        items = list(samples)
        if self.batches:
            (batch,) = items
            convert: Callable[[Any], Any] = self.collate or default_convert
            batch = convert(batch)
        elif self.collate is not None:
            batch = self.collate(items)
        else:
            batch = self._collated(items)
        return self.flat(batch)

    def flat(self, batch: Any) -> tuple[Tensor, ...]:
        """Return the tensors of a batch: x, those beside it, and the target.

        Raises:
            DataError: it is of another form.
        """
        if isinstance(batch, Mapping):
            batch = self._picked(batch)
        parts = list(batch) if isinstance(batch, tuple | list) else [batch]
        if len(parts) == 2 and isinstance(parts[0], tuple | list):
            parts = [*parts[0], parts[1]]
        kinds = [type(part).__name__ for part in parts]
        if len(parts) < 2 or not all(isinstance(part, Tensor) for part in parts):
            raise DataError(f"a batch is {type(batch).__name__} {kinds}: give tensors, as {FORMS}")
        x, *beside, target = parts
        tensors = tuple(
            tensor.detach().contiguous()
            for tensor in (_as_input(x), *map(_beside, beside), _as_target(target))
        )
        rows = [len(tensor) if tensor.dim() else -1 for tensor in tensors]
        if set(rows) == {0}:
            raise DataError("a batch without samples: have each hold at least one")
        if len(set(rows)) > 1 or rows[0] < 1:
            raise DataError(
                f"{rows[0]} samples with {rows[-1]} targets: give one for each sample"
                if len(rows) == 2
                else f"tensors of {rows} rows in a batch: give one row of each for a sample"
            )
        # The sum is cheaper than to look at every number, and NaN and infinity show in it.
        x = tensors[0]
        if x.is_floating_point() and not math.isfinite(float(x.sum())):
            bad = (~torch.isfinite(x.flatten(1)).all(1)).nonzero().flatten().tolist()
            if bad:
                raise NotFinite(bad)
        return tensors

    def _collated(self, items: list[Any]) -> Any:
        if isinstance(items[0], Mapping):
            items = [tuple(map(torch.as_tensor, self._picked(item))) for item in items]
        return default_collate(items)

    def _picked(self, item: Mapping[str, Any]) -> tuple[Any, ...]:
        there = ", ".join(map(str, item))
        if self.columns is None:
            raise DataError(
                f"a sample is {type(item).__name__}, with {there}: say which are the inputs and which, last, "
                f"is the target, as in columns=('image', 'label')"
            )
        missing = [name for name in self.columns if name not in item]
        if missing:
            raise DataError(f"columns={self.columns}: there is no {missing[0]!r}, but {there}")
        return tuple(item[name] for name in self.columns)


def loaded(samples: Sequence[Any], ids: Sequence[Any], collate: Collator) -> Loaded:
    """Make a batch of the samples that could be loaded."""
    failures = [each for each in samples if isinstance(each, Failure)]
    pairs = [
        (each, i) for each, i in zip(samples, ids, strict=True) if not isinstance(each, Failure)
    ]
    if not samples:
        return Loaded(trouble="a batch without samples: have the sampler draw at least one")
    if not pairs:
        return Loaded(failures=failures)
    numbers = [i if isinstance(i, int) else -1 for _, i in pairs]
    if collate.collate is None and not collate.batches:
        for sample, index in pairs:
            if not isinstance(sample, Mapping | tuple | list):
                trouble = f"a sample is {type(sample).__name__}: give {FORMS} (sample {index})"
                return Loaded(failures=failures, ids=numbers, trouble=trouble)
    try:
        tensors = collate([each for each, _ in pairs])
    except NotFinite as error:
        if max(error.rows) < len(pairs):
            error = NotFinite([pairs[row][1] for row in error.rows], "sample(s)")
        return Loaded(failures=failures, ids=numbers, trouble=str(error))
    except DataError as error:
        trouble = unlike(pairs) if collate.collate is None else ""
        return Loaded(failures=failures, ids=numbers, trouble=trouble or str(error))
    except Exception as error:
        trouble = told_error(error)
        if collate.collate is not None:
            some = ", ".join(str(i) for _, i in pairs[:3]) + (", ..." if len(pairs) > 3 else "")
            trouble = f"the collate function failed on samples {some} ({trouble}): mend it"
        else:
            trouble = unlike(pairs) or f"{trouble}: give samples of numbers or tensors, as {FORMS}"
        return Loaded(failures=failures, ids=numbers, trouble=trouble)
    if len(numbers) != len(tensors[0]):  # a sample that is a batch, or a collate that makes others
        numbers = []
    return Loaded(tensors, numbers, failures)


class NotFinite(DataError):
    """Samples of a batch hold NaN or infinity.

    Args:
        rows: their rows in the batch, or what else names them.
        named: what the rows are.
    """

    def __init__(self, rows: Sequence[Any], named: str = "row(s)") -> None:
        self.rows = rows
        where = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        where = where if named != "row(s)" else f"{where} of a batch"
        super().__init__(f"{named} {where} hold NaN or infinity: mend or remove them")


def unlike(pairs: Sequence[tuple[Any, Any]]) -> str:
    """Say which sample of a batch is of another kind than its first one; empty if none is.

    Args:
        pairs: samples with their indices.
    """
    kinds = [(_kind(sample), index) for sample, index in pairs]
    first, at = kinds[0]
    for kind, index in kinds:
        if kind != first:
            return (
                f"sample {index} is {kind}, and sample {at} is {first}: give all the same form, shape and "
                f"dtype, or a collate function (collate=) that pads them to one length"
            )
    return ""


def _kind(sample: Any) -> str:
    if isinstance(sample, Mapping):
        return "{" + ", ".join(f"{name}: {_kind(each)}" for name, each in sample.items()) + "}"
    if isinstance(sample, tuple | list) and any(not isinstance(e, int | float) for e in sample):
        return "(" + ", ".join(map(_kind, sample)) + ")"
    if isinstance(sample, tuple | list):
        return f"{len(sample)} numbers"
    if hasattr(sample, "shape") and hasattr(sample, "dtype"):
        return f"{str(sample.dtype).removeprefix('torch.')} {list(sample.shape)}"
    return type(sample).__name__


def told_error(error: BaseException) -> str:
    """Return an error in one line, with the user's own place where it came from."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}{': ' * bool(first)}{first}{where(error)}"


def _as_input(x: Tensor) -> Tensor:
    """Return the main input as a model takes it.

    Raises:
        DataError: it holds neither floating point numbers nor tokens.
    """
    if x.dtype in (torch.int32, torch.int16):
        return x.long()
    if not x.is_floating_point() and x.dtype != torch.int64:
        raise DataError(
            f"samples of {x.dtype}: give floating point numbers, scaled as the model wants them, or int64 "
            f"tokens"
        )
    return _beside(x)


def _beside(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _as_target(target: Tensor) -> Tensor:
    if target.dtype == torch.bool:
        return target
    if target.is_complex():
        raise DataError(
            f"targets of {target.dtype}: give real and imaginary part as numbers of their own"
        )
    return target.float() if target.is_floating_point() else target.long()
