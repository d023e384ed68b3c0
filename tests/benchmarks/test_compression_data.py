"""The data of the compression benchmark: every replica meets its own classes, through the whole run."""

import pytest
import torch
from torch import Tensor

from benchmarks.compression import skewed
from benchmarks.compression.data import Deal, DealtDataset, dealt, dealt_by_label
from pipelocal import DATASETS
from pipelocal.data import ArrayDataset, DataInfo
from pipelocal.data.batches import BatchStream
from pipelocal.errors import UserError
from pipelocal.pipeline.source import Source
from pipelocal.pipeline.timetable import Timetable
from pipelocal.transport import deal as events
from pipelocal.transport.header import Kind

REPLICAS, BATCH_SIZE, SAMPLES, PASSES, CLASSES = 4, 6, 120, 3, 10
SEED = 5

Event = tuple[int, Tensor, Tensor]
"""Number, targets, ids."""


def whole() -> ArrayDataset:
    """Samples whose pixel is their own number; labels mixed, as many of each among the first 120."""
    x = torch.arange(150.0).view(150, 1, 1, 1)
    y = torch.arange(150) * 7 % CLASSES
    info = DataInfo(name="numbers", sample_shape=(1, 1, 1), classes=CLASSES)
    return ArrayDataset(
        info=info, train_x=x, train_y=y, test_x=-x, test_y=y, mean=(0.0,), std=(1.0,)
    )


def deal_of(skew: float, *, held_out: int | None = None, samples: int = SAMPLES) -> Deal:
    return Deal(
        replicas=REPLICAS,
        batch_size=BATCH_SIZE,
        samples=samples,
        passes=PASSES,
        skew=skew,
        held_out=held_out,
    )


def trained_on(dataset: DealtDataset, replica: int) -> list[Event]:
    """The training batches that a replica of the first stage is given, in a run of one epoch."""
    batches = BatchStream(dataset, batch_size=BATCH_SIZE, seed=SEED)
    plan = Timetable(
        epochs=1,
        steps_per_epoch=batches.steps_per_epoch,
        max_steps=None,
        evaluate_every=1,
        together=REPLICAS,
        update_every=REPLICAS,
    )
    own = events.Deal(every=REPLICAS, first=replica)
    source = Source(batches, plan, torch.device("cpu"), deal=own)
    found, kinds = [], []
    while (event := source.receive()).header.kind != Kind.END:
        kinds.append(event.header.kind)
        if event.header.kind == Kind.TRAIN:
            tensors = event.tensors
            assert torch.equal(
                tensors["target"], dataset.train_y[tensors["x"].flatten().long() % SAMPLES]
            )
            found.append((event.header.number, tensors["target"], tensors["ids"]))
    assert Kind.UPDATE not in kinds, "the last update has a batch of every replica"
    assert kinds.count(Kind.EPOCH) == 1
    return found


def test_each_replica_sees_its_own_classes() -> None:
    dataset = dealt(whole(), deal_of(1), SEED)
    of_replica = [{0, 1, 2}, {2, 3, 4}, {5, 6, 7}, {7, 8, 9}]
    for replica, classes in enumerate(of_replica):
        batches = trained_on(dataset, replica)
        assert len(batches) == PASSES * SAMPLES // (REPLICAS * BATCH_SIZE)
        assert all(number % REPLICAS == replica for number, _, _ in batches)
        assert [set(target.tolist()) - classes for _, target, _ in batches] == [set()] * len(
            batches
        )
        assert set(torch.cat([target for _, target, _ in batches]).tolist()) == classes


def test_each_pass_has_every_sample_once_on_the_same_replica_in_a_new_order() -> None:
    dataset = dealt(whole(), deal_of(1), SEED)
    all_ids = []
    for replica in range(REPLICAS):
        ids = torch.cat([ids for _, _, ids in trained_on(dataset, replica)])
        all_ids.append(ids)
        passes = ids.view(PASSES, -1)
        assert torch.equal(passes // SAMPLES, torch.arange(PASSES)[:, None].expand_as(passes))
        own = [each.tolist() for each in passes % SAMPLES]
        assert all(sorted(each) == sorted(dataset.shares[replica].tolist()) for each in own)
        assert own[0] != own[1] != own[2]
    assert torch.equal(torch.cat(all_ids).sort().values, torch.arange(PASSES * SAMPLES))


def test_without_skew_every_replica_sees_nearly_all_classes() -> None:
    dataset = dealt(whole(), deal_of(0), SEED)
    for replica in range(REPLICAS):
        batches = trained_on(dataset, replica)
        assert len(set(torch.cat([target for _, target, _ in batches]).tolist())) >= 8


@pytest.mark.parametrize("skew", [0.0, 0.3, 0.5, 1.0])
def test_the_skew_is_the_share_that_is_dealt_by_label(skew: float) -> None:
    labels = torch.arange(4000) % 4
    shares = dealt_by_label(labels, 4, skew, torch.Generator().manual_seed(0))
    assert shares.shape == (4, 1000)
    assert torch.equal(shares.flatten().sort().values, torch.arange(4000))
    for group, share in enumerate(shares):
        own = float((labels[share] == group).double().mean())
        assert own == pytest.approx(skew + (1 - skew) / 4, abs=0.05)


def test_what_is_held_out_is_not_trained_on() -> None:
    dataset = dealt(whole(), deal_of(1, held_out=30), SEED)
    assert dataset.test_x.flatten().tolist() == list(range(120, 150))
    assert torch.equal(dealt(whole(), deal_of(1), SEED).test_x, whole().test_x)


def test_errors() -> None:
    with pytest.raises(UserError, match="give a multiple of 24"):
        deal_of(1, samples=121)
    with pytest.raises(UserError, match=r"a skew of 1\.5"):
        deal_of(1.5)
    with pytest.raises(UserError, match="has 150 training samples, and 151 are asked for"):
        dealt(whole(), deal_of(1, held_out=31), SEED)


def test_the_entry_point_registers_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATASETS, "_entries", {**DATASETS._entries})
    own = "--data digits --replicas 2 --batch-size 8 --samples 64 --passes 2 --skew 1"
    command = skewed.begin([*own.split(), "train", "--compress", "sign", "--seed", "3"])
    rest = "--data digits-dealt --epochs 1 --replicas 2 --batch-size 8 --compress sign --seed 3"
    assert command == ["train", *rest.split()]
    entry = DATASETS.get("digits-dealt")
    dataset = entry.load(None, 3)
    assert dataset.info == entry.info
    assert isinstance(dataset, DealtDataset)
    assert dataset.deal == Deal(replicas=2, batch_size=8, samples=64, passes=2, skew=1)
    assert len(dataset.train_x) == 128
