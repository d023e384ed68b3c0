"""The two data sets that need no files: digits and synthetic."""

import torch
import torch.nn.functional as F

from pipelocal.data import ArrayDataset, BatchStream, load_dataset


def test_digits_are_split_by_class_and_not_by_seed() -> None:
    data = load_dataset("digits", root=None, seed=0)
    other = load_dataset("digits", root=None, seed=1)
    assert (len(data.train_x), len(data.test_x)) == (1442, 355)
    assert torch.equal(data.train_x, other.train_x)
    assert torch.equal(data.test_y, other.test_y)
    share = data.test_y.bincount() / (data.test_y.bincount() + data.train_y.bincount())
    assert bool(((share > 0.18) & (share <= 0.2)).all())


def test_digits_hold_each_sample_once_and_unchanged() -> None:
    from sklearn.datasets import load_digits

    data = load_dataset("digits", root=None, seed=0)
    rows = torch.cat([data.train_x, data.test_x]).mul(16).flatten(1)
    labels = torch.cat([data.train_y, data.test_y])
    mine = sorted((*map(int, row), int(label)) for row, label in zip(rows, labels, strict=True))
    source = load_digits()
    theirs = sorted(
        (*map(int, row), int(label)) for row, label in zip(source.data, source.target, strict=True)
    )
    assert mine == theirs


def test_normalised_training_data_is_standard() -> None:
    for name in ("digits", "synthetic"):
        data = load_dataset(name, root=None, seed=0)
        (batch,) = BatchStream(data, batch_size=len(data.train_x), seed=0).train(0)
        assert abs(float(batch.x.mean())) < 0.05
        assert abs(float(batch.x.std()) - 1) < 0.05


def test_synthetic_depends_on_the_seed_alone() -> None:
    data, same, other = (load_dataset("synthetic", root=None, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(data.train_x, same.train_x)
    assert torch.equal(data.test_y, same.test_y)
    assert not torch.equal(data.train_x, other.train_x)
    assert data.train_x.shape == (2048, 3, 32, 32)
    assert data.test_x.shape == (512, 3, 32, 32)
    assert data.train_x.dtype == torch.uint8
    assert data.test_y.bincount().tolist() == [52, 52, *[51] * 8]


def test_synthetic_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    load_dataset("synthetic", root=None, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_synthetic_can_be_learnt_but_not_at_once() -> None:
    accuracy = linear_accuracy(load_dataset("synthetic", root=None, seed=0))
    assert 0.4 < accuracy < 0.9


def linear_accuracy(data: ArrayDataset) -> float:
    """Test accuracy of ridge regression on the pixels, averaged over 2x2 blocks."""

    def features(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x.float() / 255 - 0.5, 2).flatten(1)

    x, y = features(data.train_x), F.one_hot(data.train_y, data.info.known_classes).float()
    weights = torch.linalg.solve(x.T @ x + 30 * torch.eye(x.shape[1]), x.T @ y)
    hits = (features(data.test_x) @ weights).argmax(1) == data.test_y
    return float(hits.float().mean())
