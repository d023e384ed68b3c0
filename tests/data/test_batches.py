import pytest
import torch

from pipelocal.data import ArrayDataset, BatchStream, DataInfo
from pipelocal.errors import UserError
from tests.data.batches import same

MEAN = (0.4, 0.5, 0.6)
STD = (0.2, 0.25, 0.3)


def small_dataset(*, augment: bool = True, floating: bool = False) -> ArrayDataset:
    """23 training and 7 test images of 3x8x8, all different."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> torch.Tensor:
        x = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
        return x.float() / 255 if floating else x

    return ArrayDataset(
        info=DataInfo(name="small", sample_shape=(3, 8, 8), classes=5),
        train_x=images(23),
        train_y=torch.arange(23) % 5,
        test_x=images(7),
        test_y=torch.arange(7) % 5,
        mean=MEAN,
        std=STD,
        augment=augment,
    )


def normalised(x: torch.Tensor) -> torch.Tensor:
    unit = x.double() / 255 if x.dtype == torch.uint8 else x.double()
    mean, std = (torch.tensor(of).double().view(3, 1, 1) for of in (MEAN, STD))
    return ((unit - mean) / std).float()


@pytest.mark.parametrize("floating", [False, True])
def test_batches_hold_the_normalised_samples_of_their_ids(floating: bool) -> None:
    data = small_dataset(augment=False, floating=floating)
    train_before = data.train_x.clone()
    stream = BatchStream(data, batch_size=4, seed=0)
    for batch in stream.train(0):
        torch.testing.assert_close(batch.x, normalised(data.train_x[batch.ids]))
        assert torch.equal(batch.target, data.train_y[batch.ids])
        assert (batch.x.dtype, batch.target.dtype, batch.ids.dtype) == (
            torch.float32,
            torch.int64,
            torch.int64,
        )
        assert batch.x.is_contiguous()
    seen = list(stream.test())
    torch.testing.assert_close(torch.cat([batch.x for batch in seen]), normalised(data.test_x))
    assert torch.equal(torch.cat([batch.target for batch in seen]), data.test_y)
    assert torch.cat([batch.ids for batch in seen]).tolist() == list(range(7))
    assert torch.equal(data.train_x, train_before)


def test_batches_share_no_memory_with_the_data() -> None:
    data = small_dataset(augment=False, floating=True)
    stream = BatchStream(data, batch_size=7, seed=0)
    train_before, test_before = data.train_x.clone(), data.test_x.clone()
    labels_before = data.test_y.clone()
    for batch in (*stream.train(0), *stream.test()):
        batch.x.zero_()
        batch.target.zero_()
        batch.ids.zero_()
    assert torch.equal(data.train_x, train_before)
    assert torch.equal(data.test_x, test_before)
    assert torch.equal(data.test_y, labels_before)


@pytest.mark.parametrize("batch_size", [1, 4, 22, 23])
@pytest.mark.parametrize("drop_last", [False, True])
def test_tails(batch_size: int, drop_last: bool) -> None:
    stream = BatchStream(small_dataset(), batch_size=batch_size, seed=0, drop_last=drop_last)
    train = [len(batch.x) for batch in stream.train(0)]
    whole, rest = divmod(23, batch_size)
    assert train == [batch_size] * whole + [rest] * (rest > 0 and not drop_last)
    assert stream.steps_per_epoch == len(train)
    test = [len(batch.x) for batch in stream.test()]
    assert sum(test) == 7
    assert len(test) == -(-7 // batch_size)


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    stream = BatchStream(small_dataset(), batch_size=4, seed=0)
    orders = [torch.cat([batch.ids for batch in stream.train(epoch)]).tolist() for epoch in (0, 1)]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert orders[0] != orders[1] != list(range(23))
    other = BatchStream(small_dataset(), batch_size=4, seed=1)
    assert torch.cat([batch.ids for batch in other.train(0)]).tolist() != orders[0]


def test_resumed_batches_are_identical() -> None:
    stream = BatchStream(small_dataset(), batch_size=4, seed=0)
    whole = list(stream.train(2))
    for start in range(stream.steps_per_epoch + 1):
        torch.rand(3)  # the global generator must not matter
        fresh = BatchStream(small_dataset(), batch_size=4, seed=0)
        assert same(fresh.train(2, start), whole[start:])


def test_two_passes_may_be_interleaved() -> None:
    stream = BatchStream(small_dataset(), batch_size=4, seed=0)
    whole = list(stream.train(0))
    assert same((pair[0] for pair in zip(stream.train(0), stream.train(1), strict=True)), whole)


def test_augmentation_differs_by_seed_epoch_and_step() -> None:
    data = small_dataset()
    constant = ArrayDataset(
        info=data.info,
        train_x=data.train_x[:1].expand(24, 3, 8, 8),
        train_y=torch.zeros(24, dtype=torch.int64),
        test_x=data.test_x,
        test_y=data.test_y,
        mean=MEAN,
        std=STD,
        augment=True,
    )
    batches = [
        batch.x
        for seed in (0, 1)
        for epoch in (0, 1)
        for batch in BatchStream(constant, batch_size=8, seed=seed).train(epoch)
    ]
    assert len(batches) == 12
    for i, first in enumerate(batches):
        assert not any(torch.equal(first, second) for second in batches[i + 1 :])


def test_augmented_samples_are_windows_on_the_sample_of_their_id() -> None:
    data = small_dataset()
    padded = torch.nn.functional.pad(data.train_x, (4, 4, 4, 4))
    for batch in BatchStream(data, batch_size=8, seed=0).train(0):
        for x, sample in zip(batch.x, batch.ids.tolist(), strict=True):
            windows = padded[sample].unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4)
            windows = normalised(windows.reshape(81, 3, 8, 8))
            distance = torch.cat([windows, windows.flip(-1)]).sub(x).abs().amax((1, 2, 3))
            assert float(distance.min()) < 1e-5


def test_augmentation_follows_the_data_set() -> None:
    plain, augmented = (
        list(BatchStream(small_dataset(augment=augment), batch_size=4, seed=0).train(0))
        for augment in (False, True)
    )
    samples = normalised(small_dataset().train_x)
    for one, two in zip(plain, augmented, strict=True):
        torch.testing.assert_close(one.x, samples[one.ids])
        assert torch.equal(one.ids, two.ids)
    assert not same(plain, augmented)


def test_test_samples_are_never_augmented() -> None:
    first, second = (
        BatchStream(small_dataset(augment=augment), batch_size=4, seed=0).test()
        for augment in (True, False)
    )
    assert same(first, second)


@pytest.mark.parametrize("batch_size", [-1, 0, 24])
def test_batch_size_out_of_range(batch_size: int) -> None:
    with pytest.raises(UserError, match=f"batch size {batch_size} .* 23 samples"):
        BatchStream(small_dataset(), batch_size=batch_size, seed=0)


@pytest.mark.parametrize("start", [-1, 7])
def test_start_out_of_range_is_said_at_once(start: int) -> None:
    stream = BatchStream(small_dataset(), batch_size=4, seed=0)
    with pytest.raises(UserError, match=f"step {start} of an epoch of 6 steps"):
        stream.train(0, start)


def test_samples_that_are_no_images() -> None:
    data = ArrayDataset(
        info=DataInfo(name="vectors", sample_shape=(5,), classes=2),
        train_x=torch.randn(6, 5),
        train_y=torch.arange(6) % 2,
        test_x=torch.randn(2, 5),
        test_y=torch.arange(2),
        mean=(1.0,) * 5,
        std=(2.0,) * 5,
    )
    batch = next(BatchStream(data, batch_size=3, seed=0).train(0))
    torch.testing.assert_close(batch.x, (data.train_x[batch.ids] - 1) / 2)
