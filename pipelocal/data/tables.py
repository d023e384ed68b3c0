"""Tables of numbers from ``.csv`` and ``.npz`` files: a row is a sample, one column its target.

::

    width,height,target          target, or else the last column
    1.5,2.0,cat                  text or 0, 1, 2, ...: classes
    1.1,0.7,dog                  other numbers: values to be predicted

At ``--data-root`` lies one file, or a folder with ``train.csv`` and, if there are test data, ``test.csv`` or
``val.csv``. An ``.npz`` file holds arrays ``x`` and ``target`` (or ``y``), or ``x_train``, ``y_train``,
``x_test`` and ``y_test``.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelocal.data.dataset import ArrayDataset, DataInfo
from pipelocal.data.files import corrupt_file
from pipelocal.data.options import DataOptions
from pipelocal.data.splitting import split
from pipelocal.errors import DataError

TARGET = "target"
TESTS = ("test", "val")
NOT_FINITE = ("nan", "inf", "infinity")
Array = NDArray[Any]


@dataclass(frozen=True)
class Table:
    """A part of the data as it is in a file."""

    path: Path
    x: Array
    """``[N, ...]`` numbers."""
    y: Array
    """``[N]`` or ``[N, ...]`` numbers or text."""


def load(name: str, root: Path | None, _seed: int, options: DataOptions) -> ArrayDataset:
    """Read the table at ``root`` into memory.

    Args:
        name: ``csv`` or ``npz``.
        root: a file, or a folder with one for training and maybe one for testing.
        options: whether a test part is split off.

    Raises:
        DataError: no such file, or it holds no such table; names file and line or array.
    """
    train, test = _read(name, root)
    if test is not None and options.test_split is not None:
        raise DataError(
            f"--test-split {options.test_split:g}: there are test data in {test.path}: leave it out"
        )
    if test is None and options.test_split is not None:
        parts = split(range(len(train.x)), options.test_split)
        train, test = (Table(train.path, train.x[part], train.y[part]) for part in parts)
    names, targets = _targets(name, [each for each in (train, test) if each is not None])
    x = torch.from_numpy(train.x)
    test_x = x[:0] if test is None else torch.from_numpy(test.x)
    if test_x.shape[1:] != x.shape[1:]:
        raise DataError(
            f"data set '{name}': samples of the test data are {list(test_x.shape[1:])}, those of the "
            f"training data {list(x.shape[1:])}: give both the same columns"
        )
    unit = 255.0 if x.dtype == torch.uint8 else 1.0
    rest = [0, *range(2, x.dim())]
    scaled = x.double() / unit
    mean, std = scaled.mean(rest), scaled.std(rest, correction=0)
    y = targets[0]
    info = DataInfo(
        name=name,
        sample_shape=tuple(x.shape[1:]),
        classes=None if names is None else len(names),
        target_shape=tuple(y.shape[1:]),
        target_dtype=y.dtype,
    )
    return ArrayDataset(
        info=info,
        train_x=x,
        train_y=y,
        test_x=test_x,
        test_y=y[:0] if test is None else targets[1],
        mean=tuple(mean.tolist()),
        std=tuple(std.where(std > 0, 1.0).tolist()),
    )


def _read(name: str, root: Path | None) -> tuple[Table, Table | None]:
    """Return the training and the test table."""
    layout = (
        f"--data-root with a {name} file, or a folder with train.{name} and, if any, test.{name}"
    )
    if root is None:
        raise DataError(
            f"data set '{name}' is read from files and nothing is downloaded: give {layout}"
        )
    read = _read_csv if name == "csv" else _read_npz
    if root.is_dir():
        if not (root / f"train.{name}").is_file():
            raise DataError(
                f"data set '{name}': {root / f'train.{name}'} is missing: give {layout}"
            )
        train, _ = read(root / f"train.{name}")
        tests = [path for each in TESTS if (path := root / f"{each}.{name}").is_file()]
        return train, read(tests[0])[0] if tests else None
    if not root.is_file():
        raise DataError(f"data set '{name}': {root} does not exist: give {layout}")
    return read(root)


def _read_csv(path: Path) -> tuple[Table, None]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), start=1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise corrupt_file(path, name="csv", reason=f"no text in UTF-8: {error}") from error
    header = rows[0][1] if rows and not all(map(_is_number, rows[0][1][:-1])) else None
    rows = rows if header is None else rows[1:]
    if not rows:
        raise DataError(f"data set 'csv': {path} holds no row: give one for each sample")
    width = len(rows[0][1] if header is None else header)
    if width < 2:
        raise DataError(f"data set 'csv': {path} has one column: give the inputs and the target")
    at = header.index(TARGET) if header is not None and TARGET in header else width - 1
    x = np.empty((len(rows), width - 1), np.float32)
    y = []
    for row, (line, cells) in enumerate(rows):
        if len(cells) != width:
            raise _bad_line(path, line, f"{len(cells)} columns where there are {width}")
        y.append(cells[at].strip())
        if y[-1].lower().lstrip("+-") in NOT_FINITE:
            raise _bad_line(path, line, f"the target is {y[-1]}")
        for column, cell in enumerate([*cells[:at], *cells[at + 1 :]]):
            if not _is_number(cell):
                raise _bad_line(path, line, f"{cell!r} is no finite number")
            x[row, column] = float(cell)
        if not y[-1]:
            raise _bad_line(path, line, "the target is empty")
    numbers = [_is_number(each) for each in y]
    if any(numbers) and not all(numbers):
        odd = numbers.index(sum(numbers) < len(numbers) / 2)
        raise _bad_line(
            path,
            rows[odd][0],
            f"the target {y[odd]!r} is {'a' if numbers[odd] else 'no'} number, and most others are "
            f"{'none' if numbers[odd] else 'numbers'}",
        )
    return Table(path, x, np.array(y)), None


def _bad_line(path: Path, line: int, reason: str) -> DataError:
    return DataError(f"data set 'csv': {path}, line {line}: {reason}: mend or remove it")


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def _read_npz(path: Path) -> tuple[Table, Table | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:
        raise corrupt_file(path, name="npz", reason=str(error) or type(error).__name__) from error

    def part(inputs: str, *targets: str) -> Table | None:
        target = next((name for name in targets if name in arrays), None)
        if inputs not in arrays or target is None:
            return None
        x, y = arrays[inputs], arrays[target]
        if x.ndim > 1 and 0 in (len(x), len(y)):
            raise DataError(
                f"data set 'npz': {path}: {inputs} or {target} holds no row: give one for each sample, or no "
                f"{inputs}"
            )
        if x.ndim < 2 or len(x) != len(y) or not (x.dtype.kind == "f" or x.dtype == np.uint8):
            raise DataError(
                f"data set 'npz': {path}: {inputs} is {x.dtype} {list(x.shape)}, {target} {y.dtype} "
                f"{list(y.shape)}: give floating point numbers or uint8 [N, ...], and [N, ...]"
            )
        return Table(path, x if x.dtype == np.uint8 else x.astype(np.float32), y)

    train = part("x_train", "y_train", "target_train") or part("x", TARGET, "y")
    if train is None:
        raise DataError(
            f"data set 'npz': {path} holds {', '.join(arrays)}: give arrays x and target, or x_train, "
            f"y_train, x_test and y_test"
        )
    test = part("x_test", "y_test", "target_test")
    if test is None and "x_test" in arrays:
        raise DataError(f"data set 'npz': {path} holds x_test and no y_test: give both or none")
    return train, test


def _targets(name: str, parts: Sequence[Table]) -> tuple[list[str] | None, list[Tensor]]:
    """Return the names of the classes, if targets are classes, and the targets of each part."""
    values = [part.y for part in parts]
    known = values[0]
    if known.dtype.kind in "US" and all(_is_number(each) for each in known):
        whole = all(str(each).lstrip("+-").isdigit() for each in known)
        try:
            values = [
                each.astype(np.float64).astype(np.int64 if whole else np.float32) for each in values
            ]
        except ValueError as error:
            raise DataError(
                f"data set '{name}': {parts[-1].path}: a target is no number ({error})"
            ) from error
        known = values[0]
    if known.dtype.kind in "US":
        names = sorted(set(known.tolist()))
        numbers = {each: number for number, each in enumerate(names)}
        unknown = [each for value in values for each in value.tolist() if each not in numbers]
        if unknown:
            raise DataError(
                f"data set '{name}': {parts[-1].path}: class {unknown[0]!r} is in no training sample: give "
                f"one, or remove it"
            )
        return names, [torch.tensor([numbers[each] for each in value.tolist()]) for value in values]
    if known.dtype.kind in "iub" and _are_classes(known):
        count = int(known.max()) + 1
        return [str(each) for each in range(count)], [
            torch.from_numpy(value.astype(np.int64)) for value in values
        ]
    return None, [torch.from_numpy(value.astype(np.float32)) for value in values]


def _are_classes(y: Array) -> bool:
    """Whether whole numbers are 0, 1, 2, ... without a gap, and fewer than half as many as samples."""
    found = np.unique(y)
    return len(found) <= max(2, len(y) // 2) and bool((found == np.arange(len(found))).all())
