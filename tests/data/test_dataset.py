from typing import Any

import pytest
import torch

from pipelocal.data import ArrayDataset, DataInfo
from pipelocal.errors import DataError

INFO = DataInfo(name="small", sample_shape=(2, 3, 3), classes=4)


def make(**changes: Any) -> ArrayDataset:
    fields: dict[str, Any] = {
        "info": INFO,
        "train_x": torch.zeros(6, 2, 3, 3, dtype=torch.uint8),
        "train_y": torch.tensor([0, 1, 2, 3, 0, 1]),
        "test_x": torch.zeros(2, 2, 3, 3, dtype=torch.uint8),
        "test_y": torch.tensor([3, 0]),
        "mean": (0.5, 0.5),
        "std": (0.2, 0.2),
    }
    return ArrayDataset(**{**fields, **changes})


def test_good_data_is_taken() -> None:
    assert make().augment is False
    assert make(augment=True).augment is True


def test_the_first_training_samples_alone() -> None:
    few = make().first(2)
    assert few.train_y.tolist() == [0, 1]
    assert len(few.train_x) == 2
    assert len(few.test_x) == 2
    with pytest.raises(DataError, match="7 training samples are asked for, but there are 6"):
        make().first(7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_y": torch.tensor([0, 1])}, "6 training samples but 2 labels"),
        ({"test_x": torch.zeros(0, 2, 3, 3)}, "0 test samples"),
        (
            {"train_x": torch.zeros(0, 2, 3, 3), "train_y": torch.tensor([]).long()},
            "0 training samples",
        ),
        ({"train_y": torch.tensor([0, 1, 2, 4, 0, 1])}, "run from 0 to 4; 4 classes allow 0 to 3"),
        ({"test_y": torch.tensor([-1, 0])}, "test labels run from -1 to 0"),
        ({"test_y": torch.tensor([1, 0], dtype=torch.int32)}, "torch.int32"),
        ({"test_y": torch.tensor([[1], [0]])}, r"shape \(2, 1\)"),
        ({"train_x": torch.zeros(6, 2, 3, 4, dtype=torch.uint8)}, r"shape \(2, 3, 4\)"),
        ({"test_x": torch.zeros(2, dtype=torch.uint8)}, r"shape \(\)"),
        ({"train_x": torch.zeros(6, 2, 3, 3, dtype=torch.int64)}, "torch.int64"),
        ({"test_x": torch.zeros(2, 2, 3, 3)}, "torch.uint8 but test samples torch.float32"),
        ({"train_x": torch.full((6, 2, 3, 3), float("nan"))}, "NaN or infinity"),
        ({"mean": (0.5,)}, "one of each for 2 channel"),
        ({"std": (0.5, 0.0)}, "every std positive"),
    ],
)
def test_bad_data_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        make(**changes)
    assert str(caught.value).startswith("data set 'small': ")
    assert "\n" not in str(caught.value)


TOKENS = DataInfo(
    name="small", sample_shape=(5,), classes=9, target_shape=(5,), sample_dtype=torch.int64
)


def make_tokens(**changes: Any) -> ArrayDataset:
    tokens = torch.arange(5).expand(6, 5)
    fields: dict[str, Any] = {"info": TOKENS, "train_x": tokens, "train_y": tokens + 1}
    fields |= {"test_x": tokens, "test_y": tokens + 1, "mean": (), "std": ()}
    return make(**{**fields, **changes})


def test_tokens_are_taken() -> None:
    make_tokens()
    one_label = DataInfo(name="small", sample_shape=(5,), classes=9, sample_dtype=torch.int64)
    make_tokens(info=one_label, train_y=torch.arange(6), test_y=torch.arange(6))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_x": torch.zeros(6, 5)}, "torch.float32; tokens are uint8, int32 or int64"),
        ({"train_y": torch.arange(6)}, r"shape \(6,\); give int64 of shape \[N, 5\]"),
        ({"train_y": torch.full((6, 5), 9)}, "run from 9 to 9; 9 classes"),
        ({"mean": (0.5,)}, "one of each for 0 channel"),
    ],
)
def test_bad_tokens_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        make_tokens(**changes)


def test_info_knows_two_dtypes() -> None:
    with pytest.raises(DataError, match=r"samples of torch.int32"):
        DataInfo(name="odd", sample_shape=(3,), classes=2, sample_dtype=torch.int32)


def test_augmentation_wants_images() -> None:
    with pytest.raises(DataError, match=r"augment=True for samples of shape \(5,\)"):
        make(
            info=DataInfo(name="small", sample_shape=(5,), classes=4),
            train_x=torch.zeros(6, 5),
            test_x=torch.zeros(2, 5),
            mean=(0.0,) * 5,
            std=(1.0,) * 5,
            augment=True,
        )


@pytest.mark.parametrize(("shape", "classes"), [((), 2), ((3, 0), 2), ((3,), 0)])
def test_info_must_make_sense(shape: tuple[int, ...], classes: int) -> None:
    with pytest.raises(DataError, match="data set 'odd'"):
        DataInfo(name="odd", sample_shape=shape, classes=classes)
