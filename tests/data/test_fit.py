"""What ``fit`` and ``evaluate`` take, all the way to trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import pipelocal as pl
from pipelocal.telemetry.timeline import StageTimes, Timeline
from tests.data.test_own import COUNT, Augmented, Counting, Stateful


class Fail(pl.Callback):
    """Ends a run in its second stage."""

    def on_batch_end(self, event: pl.BatchEnd) -> None:
        if event.stage == 2 and event.step == 8:
            raise RuntimeError("the power is out")


def pipe(width: int = 2, **options: Any) -> pl.Pipeline:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 3))
    return pl.Pipeline(net, stages=2, snapshot_every=3, keep_snapshots=9, **options)


def weights(pipe: pl.Pipeline) -> Tensor:
    return torch.cat([value.flatten() for value in pipe.module().state_dict().values()])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [Stateful, Counting])
def test_a_stream_goes_on_after_a_failure(
    kind: type[Counting], workers: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    length: dict[str, Any] = {
        "max_steps": 14,
        "epochs": 2,
        "batch_size": 5,
        "workers": workers,
        "progress": False,
    }
    whole, broken, again = pipe(), pipe(), pipe()
    whole.fit(kind(), **length)
    out = str(tmp_path / "run")
    with pytest.raises(pl.StageError, match="the power is out"):
        broken.fit(kind(), out=out, callbacks=[Fail()], **length)
    capfd.readouterr()
    again.fit(kind(), out=out, **length)
    assert torch.equal(weights(whole), weights(again))
    assert ("batches again" in capfd.readouterr().err) == (kind is Counting)


def test_workers_change_no_bit() -> None:
    found = []
    for workers in (0, 2):
        pipes = pipe(4)
        summary = pipes.fit(
            Augmented(), 0.3, epochs=2, batch_size=5, workers=workers, progress=False
        )
        found.append(weights(pipes))
        assert summary["eval_accuracy"] is not None
        figures = pipes.evaluate(Augmented(), workers=workers)
        assert figures["loss"] > 0
    assert torch.equal(*found)


def test_mixed_targets_train_and_evaluation_does_not_mix() -> None:
    found = []
    for workers in (0, 1):
        mixing = pipe(4, task=pl.tasks.Classification(classes=3))
        given: dict[str, Any] = {"batch_size": 5, "workers": workers, "progress": False}
        summary = mixing.fit(Augmented(), 0.3, epochs=2, mixup=0.5, **given)
        assert 0 <= summary["eval_accuracy"] <= 1
        found.append(weights(mixing))
    assert torch.equal(*found)
    plain = pipe(4)
    plain.fit(Augmented(), 0.3, epochs=2, **given)
    assert not torch.equal(found[0], weights(plain))


def test_several_inputs() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            made: Tensor = self.last(self.middle(self.first(x)) * mask[:, :1])
            return made

    class Pairs(Augmented):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return (x, torch.ones(4)), y

    torch.manual_seed(0)
    inputs = {"x": torch.zeros(2, 4), "mask": torch.ones(2, 4)}
    chain = pl.Chain.from_module(Masked(), units=["first", "middle", "last"], inputs=inputs)
    pipe = pl.Pipeline(chain, stages=2)
    pipe.fit(Pairs(), epochs=1, batch_size=5, progress=False)
    assert pipe.evaluate(Pairs())["loss"] > 0


def test_arguments_of_fit() -> None:
    def error(*data: Any, **options: Any) -> str:
        with pytest.raises(pl.UserError) as caught:
            pipe(4).fit(*data, progress=False, **options)
        return str(caught.value)

    loader = torch.utils.data.DataLoader(Augmented(), 5)
    assert "say how long to train" in error(Augmented())
    assert "batch_size=3: the DataLoader says so itself" in error(loader, epochs=1, batch_size=3)
    assert "workers=-1: give 0 to" in error(Augmented(), epochs=1, workers=-1)
    assert "bad_samples='no': give" in error(Augmented(), epochs=1, bad_samples="no")
    assert "columns='x': give the names" in error(Augmented(), epochs=1, columns="x")
    assert "test=1.5: give a share" in error(Augmented(), 1.5, epochs=1)
    assert "a share can be split off a data set" in error(Counting(), 0.1, max_steps=3)
    assert f"leaves {COUNT} for training and 0" in error(Augmented(), 1e-9, epochs=1)


def test_the_timeline_names_the_loader() -> None:
    """Of two ranks, and of one."""
    fast = dict.fromkeys(("forward", "head", "backward", "reconcile", "step"), 1.0)
    waits = {"receive": 15.0, "send": 0.0, "average": 0.0}
    stages = [StageTimes(stage=n, rank=n - 1, ms={**fast, **waits}) for n in (1, 2)]
    timeline = Timeline(stages=stages, edges_ms={"1 -> 2": 1.0}, period_ms=20.0, events=[])
    assert "loading the data is the bottleneck: stage 1 waits for it 75%" in timeline.verdict()
    alone = Timeline(stages=stages[:1], edges_ms={}, period_ms=20.0, events=[])
    assert "--workers N" in alone.verdict()


class SharedOut(IterableDataset[tuple[Tensor, Tensor]]):
    """21 samples, shared out among the workers of a DataLoader."""

    def __len__(self) -> int:
        return 21

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        values = torch.arange(42.0).view(21, 2) / 42
        return iter([(values[at], torch.tensor(at % 3)) for at in range(first, 21, step)])


def test_workers_that_share_out_ended_with_batches_that_nobody_read(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its length is that of whole batches: 3, where two workers make 4; an evaluation was of 19 samples."""
    shared = DataLoader(SharedOut(), batch_size=8, num_workers=2)
    one, two = pipe(), pipe()
    one.fit(DataLoader(SharedOut(), batch_size=8), shared, epochs=1, progress=False)
    assert "left out" not in capfd.readouterr().err
    plain = one.evaluate(DataLoader(SharedOut(), batch_size=21))
    assert one.evaluate(shared)["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    two.fit(shared, epochs=2, progress=False)
    said = capfd.readouterr().err
    assert said.count("train: 2 of 21 samples are left out of each pass, since 2 workers") == 1
