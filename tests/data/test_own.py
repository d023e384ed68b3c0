"""Data of a user's own: the same batches however they are loaded, and from whichever step on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pipelocal.data.batches import Batch, everything
from pipelocal.data.loading import Loading
from pipelocal.data.own import OwnBatches
from pipelocal.errors import DataError, UserError

COUNT = 22


class Augmented(Dataset[tuple[Tensor, int]]):
    """Samples that draw from all three generators."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return torch.tensor([float(index), *draws]), index % 3


class Broken(Augmented):
    """Some samples cannot be loaded."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in (3, 4):
            raise OSError("no such sample")
        return super().__getitem__(index)


class Counting(IterableDataset[tuple[Tensor, int]]):
    """Numbers, and what is drawn; knows where it is."""

    def __init__(self, count: int = COUNT) -> None:
        self.count = count
        self.at = 0
        self.read = 0

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        while self.at < self.count:
            self.at += 1
            self.read += 1
            yield torch.tensor([float(self.at), random.random()]), self.at % 3
        self.at = 0


class Stateful(Counting):
    """The same, with a state."""

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def own(train: Any, test: Any = None, *, steps: int | None = None, **loading: Any) -> OwnBatches:
    return OwnBatches(
        train, test, seed=1, steps=steps, loading=Loading(**{"batch_size": 5, **loading})
    )


def batches(data: OwnBatches, epoch: int = 0, start: int = 0) -> list[Batch]:
    return [batch for batch in data.training(epoch, start, everything) if batch is not None]


def assert_same(some: list[Batch], others: list[Batch]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.target, other.target)
        assert torch.equal(one.ids, other.ids)


def test_a_sample_s_draws_depend_on_nothing_but_seed_epoch_and_index() -> None:
    expected = {epoch: batches(own(Augmented()), epoch) for epoch in (0, 1)}
    random.seed(7)
    by_workers = own(Augmented(), workers=2)
    assert by_workers.ahead
    for epoch in (0, 1):  # the workers stay
        assert_same(expected[epoch], batches(by_workers, epoch))
    assert_same(expected[1][2:], batches(by_workers, 1, 2))
    by_workers.close()
    assert_same(expected[1][2:], batches(own(Augmented()), 1, 2))
    first, second = (torch.cat([b.x for b in expected[e]]) for e in (0, 1))
    assert sorted(first[:, 0].tolist()) == sorted(second[:, 0].tolist()) == list(range(COUNT))
    assert not torch.equal(first, second)


def test_loading_leaves_the_generators_alone() -> None:
    torch.manual_seed(3)
    random.seed(3)
    expected = (torch.rand(3), random.random())
    torch.manual_seed(3)
    random.seed(3)
    for data in (
        own(Augmented()),
        own(DataLoader(Augmented(), 5, shuffle=True)),
        own(Counting(), steps=3),
    ):
        batches(data)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


def test_a_replica_loads_its_own_batches_alone() -> None:
    loaded: list[int] = []

    class Noting(Augmented):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            loaded.append(index)
            return super().__getitem__(index)

    data, whole = own(Noting()), batches(own(Augmented()))
    loaded.clear()
    mine = list(data.training(0, 1, lambda step: step % 2 == 0))
    assert [batch is None for batch in mine] == [True, False, True, False]
    assert_same([whole[2], whole[4]], [batch for batch in mine if batch is not None])
    assert loaded == [int(i) for step in (2, 4) for i in whole[step].ids]


def test_a_loader_s_own_order_and_workers() -> None:
    def loader(**options: Any) -> DataLoader[Any]:
        return DataLoader(Augmented(), 5, shuffle=True, **options)

    expected = batches(own(loader()), 1)
    workers = own(loader(num_workers=2))
    assert_same(expected, batches(workers, 1))
    workers.close()
    assert_same(expected[3:], batches(own(loader()), 1, 3))
    generator = torch.Generator().manual_seed(1)
    other = batches(own(loader(generator=generator)), 1)
    assert not torch.equal(other[0].ids, expected[0].ids)
    assert batches(own(loader(drop_last=True)))[-1].x.shape == (5, 4)


def test_forms_of_a_sample() -> None:
    x, mask, y = torch.zeros(8, 3), torch.ones(8, 3, dtype=torch.bool), torch.arange(8) % 2
    for given in (
        TensorDataset(x, mask, y),
        [((x[i], mask[i]), y[i]) for i in range(8)],
        DataLoader(TensorDataset(x, mask, y), 5),
    ):
        data = own(given)
        assert [kind.dtype for kind in data.info(None).beside] == [torch.bool]
        batch = batches(data)[0]
        assert batch.beside[0].shape == batch.x.shape
    rows = [{"text": [1, 2, 3], "label": i % 2, "id": "a"} for i in range(8)]
    data = own(rows, columns=("text", "label"))
    assert data.info(None).sample_dtype == torch.int64
    assert batches(data)[0].x.tolist() == [[1, 2, 3]] * 5
    data = own(
        rows,
        columns=("text", "label"),
        collate=lambda items: {
            name: torch.tensor([item[name] for item in items]) for name in ("label", "text")
        },
    )
    assert batches(data)[0].target.dim() == 1
    numbers = own([(torch.zeros(2), 0.5)] * 6)
    assert numbers.info(None).target_dtype == torch.float32


def test_functions_and_shares() -> None:
    data = own(lambda: (Augmented(), TensorDataset(torch.zeros(4, 4), torch.zeros(4).long())))
    assert data.describe()["test_samples"] == 4
    assert [len(b.x) for b in data.testing(everything) if b] == [4]
    pair = own(None, lambda: (Augmented(), [(torch.zeros(4), 1)] * 3))
    assert [len(b.x) for b in pair.testing(everything) if b] == [3]
    with pytest.raises(DataError, match="there is no test data"):
        own(None, lambda: (Augmented(), None))
    split = own(Augmented(), 0.3)
    counts = split.describe()
    assert counts["train_samples"] + counts["test_samples"] == COUNT
    trained = {int(x) for b in batches(split) for x in b.x[:, 0]}
    tested = {int(x) for b in split.testing(everything) if b for x in b.x[:, 0]}
    assert trained | tested == set(range(COUNT))
    assert not trained & tested


def test_samples_that_cannot_be_loaded(capfd: pytest.CaptureFixture[str]) -> None:
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"train: sample [34] failed \(OSError: no such sample"):
            batches(own(Broken(), workers=workers))
    data = own(Broken(), bad_samples="skip")
    seen = [int(x) for b in batches(data) for x in b.x[:, 0]]
    assert sorted(seen) == [i for i in range(COUNT) if i not in (3, 4)]
    batches(data, 1)
    assert "2 so far" in (said := capfd.readouterr().err)
    assert said.count("left out") == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_goes_on_by_its_state(workers: int) -> None:
    expected = batches(own(Stateful(), steps=7))  # a pass of 5 batches, and two of the next
    first = own(Stateful(), steps=7, workers=workers)
    walk = first.training(0, 0, everything)
    some = [batch for _, batch in zip(range(3), walk, strict=False) if batch is not None]
    state = first.state_dict()
    assert state is not None
    walk.close()
    dataset = Stateful()
    again = own(dataset, steps=7, workers=workers)
    read = dataset.read
    again.go_on(3, state)
    assert_same(expected, some + batches(again, 0, 3))
    if workers == 0:
        assert dataset.read - read == COUNT + 10 - 15  # nothing is read again


def test_a_stream_without_a_state_is_read_again(capfd: pytest.CaptureFixture[str]) -> None:
    expected = batches(own(Counting(), steps=7))
    assert_same(expected[4:], batches(own(Counting(), steps=7), 0, 4))
    said = capfd.readouterr().err
    assert "no state_dict to go on from: reading its first 4 batches again" in said
    assert "ended after 5 batches: it begins anew" in said


@pytest.mark.parametrize("kind", [Stateful, Counting])
def test_a_stream_goes_on_in_epochs_of_another_length(kind: type[Counting]) -> None:
    """It counted the epochs before in its own length: it skipped batches, or had read too far."""
    expected = batches(own(kind(), steps=7))
    first = own(kind(), steps=3)
    batches(first)
    for steps in (2, 4):
        again = own(kind(), steps=steps)
        again.go_on(3, first.state_dict())
        assert_same(expected[3 : 3 + steps], batches(again, 1, 0))


class Sized(Counting):
    def __len__(self) -> int:
        return 30


class Ragged(Augmented):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3 + index % 2), 0


class Holes(Augmented):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = super().__getitem__(index)
        return (x / 0 if index == 1 else x), y


class Grows(Augmented):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3 + (index == 1)), 0


class Dies(Augmented):
    """A worker that is killed, as it is where memory runs out."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        import os
        import signal

        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no length": (
        Counting(),
        {},
        "has no length: say how many batches to train on, with --max-steps",
    ),
    "ends early": (Sized(), {}, "the loader ended before batch 5, and its length is 6"),
    "empty": (Counting(0), {"steps": 3}, "the data set yields nothing"),
    "no samples": ([], {}, "holds no sample"),
    "an iterator": (iter([1]), {"steps": 3}, "can be read only once"),
    "no data": (3, {}, "int is no data"),
    "a function": (lambda: 3, {}, "int is no data"),
    "a dict": ([{"a": 1, "b": 2}] * 8, {}, "with a, b: say which are the inputs"),
    "no column": ([{"a": 1}] * 8, {"columns": ("a", "c")}, "there is no 'c', but a"),
    "one tensor": ([torch.zeros(3)] * 8, {}, "a sample is Tensor: give (x, target)"),
    "text": ([("a", 1)] * 8, {}, "give tensors, as (x, target)"),
    "bytes": ([(torch.zeros(3).byte(), 1)] * 8, {}, "samples of torch.uint8"),
    "shapes": (Ragged(), {}, "give all the same form, shape and dtype, or a collate function"),
    "not a number": (Holes(), {}, "hold NaN or infinity"),
    "another shape": (
        Grows(),
        {"batch_size": 1},
        "samples or targets of float32 [4], after ones of float32 [3]",
    ),
    "batch size": (
        Augmented(),
        {"batch_size": 99},
        "batch size 99 for a training set of 22 samples",
    ),
    "a worker that dies": (Dies(), {"workers": 1}, "a worker process that loads the data failed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(case: str) -> None:
    given, options, text = WRONG[case]
    with pytest.raises(UserError) as caught:
        batches(own(given, **options))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_test_data_without_a_length() -> None:
    with pytest.raises(
        UserError, match="an evaluation might never end: give it __len__, or a list"
    ):
        own(Augmented(), Counting(), steps=3)
