"""Bad data: whatever a user gives ends in one line that says what, where and how to mend it.

The tables are the kinds, by what ``fit`` is given, in this process, and by what lies at ``--data-root``. Real
ranks are in the tests behind them.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

import pipelocal as pl
from pipelocal.api import data as api_data
from pipelocal.data import load_dataset
from pipelocal.data.collating import Failure
from pipelocal.data.image_folder import Images
from pipelocal.data.in_time import patience_of
from pipelocal.errors import DataError, UserError
from pipelocal.ranks.script import end_plainly
from pipelocal.run.edges import edge_patience
from tests.launching import FOR_EVER, start

COUNT = 24
BAD = 14
"""The bad sample: not among the first that are looked at."""
Sample = Any
Change = Callable[[Tensor, int], Sample]


class Numbers(Dataset[Sample]):
    """Four numbers and one of three classes each; one sample is another."""

    def __init__(
        self, bad: Change | None = None, *, all_bad: bool = False, length: Any = COUNT
    ) -> None:
        self.bad, self.all_bad, self.length = bad, all_bad, length

    def __len__(self) -> int:
        length: int = self.length() if callable(self.length) else self.length
        return length

    def __getitem__(self, index: int) -> Sample:
        x, y = torch.full((4,), index % 3 + 1.0), index % 3
        return self.bad(x, y) if self.bad and (self.all_bad or index == BAD) else (x, y)


class Dicts(Numbers):
    """Samples by name."""

    def __getitem__(self, index: int) -> Sample:
        x, y = super().__getitem__(index)
        return {"x": x} if index == BAD else {"x": x, "y": y}


class Flow(IterableDataset[Sample]):
    """What a function yields."""

    def __init__(self, begin: Callable[[], Iterator[Sample] | None]) -> None:
        self.begin = begin

    def __iter__(self) -> Any:
        return self.begin()


class SizedFlow(Flow):
    """The same, with a length."""

    def __len__(self) -> int:
        return COUNT


def good(count: int) -> Iterator[Sample]:
    return (Numbers()[index] for index in range(count))


def broken_off() -> Iterator[Sample]:
    yield from good(BAD)
    raise OSError("the line is dead")


def hanging() -> Iterator[Sample]:
    yield from good(BAD)
    hang()


def hang(*_: Any) -> Any:
    time.sleep(10_000)


def fail(*_: Any) -> Any:
    raise ValueError("cannot be read\nand more")


def nothing(*_: Any) -> Any:
    return None


def leave(*_: Any) -> Any:
    raise SystemExit(4)


def killed(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def lengths(*each: int) -> Callable[[], int]:
    """A length that changes when it is asked for the last time."""
    left = list(each)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def empty_batch() -> DataLoader[Sample]:
    class Sampler(list[list[int]]):
        pass

    return DataLoader(Numbers(), batch_sampler=Sampler([[0, 1], [], [2]]))


def larger_batch() -> DataLoader[Sample]:
    return DataLoader(Numbers(), batch_sampler=[[0, 1], [2, 3, 4]])


def dealt_out() -> DataLoader[Sample]:
    sampler: Any = DistributedSampler(Numbers(), num_replicas=2, rank=0)
    return DataLoader(Numbers(), 4, sampler=sampler)


def failing_later() -> Callable[[list[Sample]], Any]:
    calls: list[int] = []

    def collate(samples: list[Sample]) -> Any:
        calls.append(0)
        return fail() if len(calls) > 2 else torch.utils.data.default_collate(samples)

    return collate


def once() -> Iterator[Sample]:
    return good(COUNT)


GENERATOR = once()
STEPS = {"max_steps": 12, "epochs": 2}
NUMBERS = pl.tasks.Regression()
WORDS = [(torch.zeros(3 + i % 5, dtype=torch.int64), i % 3) for i in range(COUNT)]
NAN = float("nan")

# What is given, as training data or as a pair; arguments of fit and Pipeline; what is said.
KINDS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "raises": (Numbers(fail), {}, "train: sample 14 failed (ValueError: cannot be read): mend"),
    "raises in the test data": (
        (Numbers(), Numbers(fail)),
        {},
        "test: sample 14 failed (ValueError: cannot be read): mend",
    ),
    "exits": (Numbers(leave), {}, "train: sample 14 failed (SystemExit: 4)"),
    "exits in a worker": (Numbers(leave), {"workers": 1}, "sample 14 failed (SystemExit: 4)"),
    "None": (Numbers(nothing), {}, "train: sample 14 failed (it is None)"),
    "no target": (Numbers(lambda x, _: x), {}, "a sample is Tensor: give (x, target)"),
    "another form": (
        Numbers(lambda x, y: (x, x, y)),
        {},
        "sample 14 is (float32 [4], float32 [4], int), and sample",
    ),
    "another shape": (
        Numbers(lambda x, y: (x[1:], y)),
        {},
        "is (float32 [4], int): give all the same form, shape and dtype, or a collate",
    ),
    "another shape in the test data": (
        (Numbers(), Numbers(lambda x, y: (x[1:], y), all_bad=True)),
        {},
        "test: samples or targets of float32 [3], after ones of float32 [4]",
    ),
    "another dtype": (
        Numbers(lambda x, y: (x.long(), y)),
        {"batch_size": 1},
        "samples or targets of int64 [4], after ones of float32 [4]",
    ),
    "texts of several lengths": (WORDS, {}, "that pads them to one length"),
    "a missing name": (Dicts(), {"columns": ("x", "y")}, "sample 14 is {x: float32 [4]}, and"),
    "text": (Numbers(lambda _, y: ("a", y)), {}, "sample 14 is (str, int), and sample"),
    "NaN": (Numbers(lambda x, y: (x * NAN, y)), {}, "sample(s) 14 hold NaN or infinity: mend"),
    "infinity": (
        (Numbers(), Numbers(lambda x, y: (x / 0, y))),
        {},
        "test: sample(s) 14 hold NaN or infinity",
    ),
    "NaN in a target": (
        [(torch.ones(4), NAN if i == BAD else 1.0) for i in range(COUNT)],
        {"task": NUMBERS},
        "a training batch in epoch 1 (sample 14): targets hold NaN or infinity",
    ),
    "a label out of range": (
        Numbers(lambda x, _: (x, 3)),
        {},
        "a training batch in epoch 1 (sample 14): labels run from",
    ),
    "a negative label": (
        (Numbers(), Numbers(lambda x, _: (x, -1))),
        {},
        "a test batch in epoch 1 (sample 14): labels run from -1 to",
    ),
    "labels in floating point": (
        Numbers(lambda x, y: (x, float(y)), all_bad=True),
        {},
        "targets are torch.float32 [B], and classification wants labels, int64",
    ),
    "labels of another shape": (
        Numbers(lambda x, y: (x, torch.tensor([y, y])), all_bad=True),
        {},
        "outputs [B, 3], but Classification of this data wants [B, 2, 3]",
    ),
    "integers to regress": (Numbers(), {"task": NUMBERS}, "give target.float()"),
    "a collate function that raises": (
        Numbers(),
        {"collate": failing_later()},
        "the collate function failed on samples",
    ),
    "a length that is too long": (
        Numbers(lambda *_: [0][1]),
        {"batch_size": 8},
        "sample 14 failed (IndexError: list index out of range)",
    ),
    "a length that changes": (
        Numbers(length=lengths(24, 24, 24, 8)),
        {},
        "the data set holds 8 samples in epoch",
    ),
    "a length that raises": (
        Numbers(length=fail),
        {},
        "the data set's __len__ fails (ValueError: cannot be read): have it return the number",
    ),
    "a negative length": (
        Numbers(length=-1),
        {},
        "the data set's __len__ fails (ValueError: __len",
    ),
    "no samples": (Numbers(length=0), {}, "train: the data set holds no sample: give at least one"),
    "no test samples": ((Numbers(), []), {}, "give at least one, or no test data"),
    "no batch": (DataLoader(Numbers(), 99, drop_last=True), {}, "the loader yields no batch"),
    "a batch without samples": (empty_batch(), {}, "a batch without samples: have the sampler"),
    "a larger batch": (larger_batch(), {}, "a batch of 3 samples, after one of 2"),
    "a DistributedSampler": (dealt_out(), {}, "and here the first stage reads them all: leave it"),
    "a generator": (once(), STEPS, "generator can be read only once"),
    "a generator in a data set": (
        Flow(lambda: GENERATOR),
        STEPS,
        "the data set yields nothing: give one whose __iter__ begins anew",
    ),
    "a stream that ends early": (
        SizedFlow(lambda: good(BAD)),
        {},
        "the loader ended before batch 4, and its length is 6",
    ),
    "an empty stream": (Flow(lambda: iter(())), STEPS, "the data set yields nothing"),
    "a stream without an end": (Flow(once), {}, "say how many batches to train on, with --max-st"),
    "a stream that raises": (
        Flow(broken_off),
        STEPS,
        "train: the data set failed after 3 batches (OSError: the line is dead): mend",
    ),
    "a stream that raises in a worker": (
        Flow(broken_off),
        {**STEPS, "workers": 1},
        "train: the data set failed after 3 batches (OSError: the line is dead): mend",
    ),
    "a stream that raises in the user's workers": (
        DataLoader(Flow(broken_off), 4, num_workers=2),
        STEPS,
        "batches (OSError: the line is dead): mend",
    ),
    "a stream of nothing": (Flow(lambda: None), STEPS, "iter() returned non-iterator"),
    "a stream of several shapes": (
        Flow(lambda: ((torch.zeros(4 + i // 13), 0) for i in range(COUNT))),
        STEPS,
        "sample 13 is (float32 [5], int), and sample 12 is (float32 [4], int)",
    ),
    "hangs": (
        Numbers(hang),
        {"timeout": 2.4},
        "train: the data set gave no batch for 0.9 s (sample 14): it hangs or is too slow: mend it, or give",
    ),
    "hangs in the test data": (
        (Numbers(), Numbers(hang)),
        {"timeout": 2.4},
        "test: the data set gave no batch for 0.9 s (sample 14)",
    ),
    "a stream that hangs": (
        Flow(hanging),
        {**STEPS, "timeout": 2.4},
        "the data set gave no batch for 0.9 s",
    ),
    "hangs in a worker": (
        Numbers(hang),
        {"workers": 1, "timeout": 4.0},
        "the data set gave no batch for 1.5 s by the worker processes that load it",
    ),
    "workers that cannot be started": (
        DataLoader(Numbers(lambda *_: 0), 4, num_workers=1, multiprocessing_context="spawn"),
        {},
        "train: the worker processes that load the data cannot be started (",
    ),
    "a worker that is killed": (
        Numbers(killed),
        {"workers": 1},
        "a worker process that loads the data failed (",
    ),
}
OF_PIPELINE = ("task", "timeout")


def fit(given: Any, **options: Any) -> dict[str, Any]:
    """Train on some data in this process."""
    train, test = given if isinstance(given, tuple) else (given, None)
    torch.manual_seed(0)
    outputs = 1 if "task" in options else 3
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, outputs))
    more = {name: options.pop(name) for name in OF_PIPELINE if name in options}
    if not isinstance(train, DataLoader):
        options = {"batch_size": 4, **options}
    pipe = pl.Pipeline(net, stages=2, snapshot_every=3, **more)
    return pipe.fit(train, test, **{"epochs": 2, "progress": False, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_bad_data_end_in_one_line(kind: str) -> None:
    given, options, text = KINDS[kind]
    with pytest.raises(UserError) as caught:
        fit(given, **options)
    # Where it failed in a file is told once some test has imported from its folder.
    said = re.sub(r" \([^()]*, line \d+\)", "", str(caught.value))
    assert text in said
    assert "\n" not in said


def test_bad_samples_are_skipped_and_counted(capfd: pytest.CaptureFixture[str]) -> None:
    for bad in (fail, leave, nothing):
        summary = fit((Numbers(bad), Numbers(bad)), bad_samples="skip")
        assert summary["steps"] == 12
        said = capfd.readouterr().err
        assert said.count("left out: train: sample 14 failed") == 1
        assert "left out: test: sample 14 failed" in said
        assert "2 so far" in said


def test_what_came_before_a_bad_sample_is_kept(tmp_path: Path) -> None:
    calls: list[int] = []

    def later(x: Tensor, y: int) -> Sample:
        calls.append(0)
        return (x, y) if len(calls) == 1 else fail()

    out = str(tmp_path / "run")
    with pytest.raises(DataError, match="sample 14 failed"):
        fit(Numbers(later), out=out)  # in the second epoch
    kept = [path.name for path in (tmp_path / "run" / "snapshots").glob("step-*")]
    assert "step-00000006" in kept
    assert fit(Numbers(), out=out)["steps"] == 12


CSV = "a,b,target\n" + "".join(f"{i % 7},{i % 5}.5,{i % 3}\n" for i in range(20))
X, Y = np.ones((20, 4), np.float32), np.arange(20) % 3
FILES: dict[str, tuple[str, Any, str]] = {
    "a ragged row": ("csv", CSV + "1,2\n", "line 22: 2 columns where there are 3"),
    "a header alone": ("csv", "a,b,target\n", "holds no row: give one for each sample"),
    "no text": ("csv", bytes(range(256)), "no text in UTF-8"),
    "text for a number": ("csv", CSV + "x,2,1\n", "line 22: 'x' is no finite number"),
    "NaN": ("csv", CSV + "nan,2,1\n", "line 22: 'nan' is no finite number"),
    "a target of NaN": ("csv", CSV + "1,2,NaN\n", "line 22: the target is NaN: mend or remove it"),
    "no target": ("csv", CSV + "1,2,\n", "line 22: the target is empty"),
    "a name among numbers": (
        "csv",
        CSV + "1,2,cat\n",
        "line 22: the target 'cat' is no number, and most others are numbers",
    ),
    "a number among names": (
        "csv",
        "1,2,cat\n1,2,3\n1,2,dog\n",
        "line 2: the target '3' is a number, and most others are none",
    ),
    "one column": ("csv", "target\n1\n2\n", "has one column: give the inputs and the target"),
    "no arrays": ("npz", {"foo": X}, "holds foo: give arrays x and target"),
    "no targets": ("npz", {"x": X}, "holds x: give arrays x and target"),
    "no targets for testing": (
        "npz",
        {"x_train": X, "y_train": Y, "x_test": X},
        "holds x_test and no y_test: give both or none",
    ),
    "unequal lengths": ("npz", {"x": X, "y": Y[1:]}, "x is float32 [20, 4], y int64 [19]"),
    "no rows": ("npz", {"x": X[:0], "y": Y[:0]}, "holds no row: give one for each sample"),
    "no rows for testing": (
        "npz",
        {"x_train": X, "y_train": Y, "x_test": X[:0], "y_test": Y[:0]},
        "x_test or y_test holds no row: give one for each sample, or no x_test",
    ),
    "infinity": (
        "npz",
        {"x": X * np.float32("inf"), "y": Y},
        "training samples hold NaN or infinity",
    ),
    "objects": ("npz", {"x": X, "y": np.array([{}] * 20)}, "is truncated or corrupt (Object"),
    "a broken file": ("npz", b"PK\3\4 and no more", "is truncated or corrupt"),
}


@pytest.mark.parametrize("kind", FILES)
def test_bad_files_are_named(kind: str, tmp_path: Path) -> None:
    name, content, text = FILES[kind]
    path = tmp_path / f"data.{name}"
    if isinstance(content, dict):
        np.savez(path, **content)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        load_dataset(name, root=path, seed=0)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot identify image file"),
        (b"hello", "cannot identify image file"),
        (None, "[Errno 2] No such file or directory"),  # as one is that may not be read
    ],
)
def test_images_that_cannot_be_read(content: bytes | None, reason: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    path = tmp_path / "a.png"
    if content is None:
        path.symlink_to(tmp_path / "nothing")
    else:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        Images([(path, 0)], None)[0]
    assert f"{path} cannot be read as an image ({reason}" in str(caught.value)
    assert Failure.of(0, caught.value).named


@pytest.mark.parametrize("timeout_s", [0.01, 1.0, 4.0, 30.0, 300.0])
def test_the_loader_is_named_before_a_stage_that_waits_for_it(timeout_s: float) -> None:
    assert 0 < patience_of(timeout_s) < edge_patience(timeout_s)


def on_two_ranks(folder: Path, given: Callable[[], Any], **options: Any) -> Sequence[str]:
    """Train on two ranks in vain; the last line of each."""

    def body(rank: int) -> None:
        end_plainly(rank)
        # Of loading alone, for the machine may be busy.
        vars(api_data)["patience_of"] = lambda _: 2.0
        try:
            fit(given(), **options)
        except Exception as error:  # a forked process has no hook for these
            print(" ".join(str(error).split()), flush=True)
            os._exit(1)

    ranks = start(folder, body, 2)
    assert ranks.wait() == [1, 1], ranks.output()
    return [ranks.output(rank).strip().splitlines()[-1] for rank in range(2)]


@pytest.mark.parametrize(
    ("bad", "options", "text"),
    [
        (fail, {}, "train: sample 14 failed (ValueError: cannot be read"),
        (killed, {"workers": 2}, "a worker process that loads the data failed"),
        (hang, {"timeout": FOR_EVER}, "train: the data set gave no batch for 2 s (sample 14)"),
    ],
)
def test_every_rank_ends(bad: Change, options: dict[str, Any], text: str, tmp_path: Path) -> None:
    for line in on_two_ranks(tmp_path, lambda: Numbers(bad), **options):
        assert text in line
