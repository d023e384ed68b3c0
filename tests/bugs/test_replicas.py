"""Defects of replicas and of what stages share: what differed in silence, or ended in a bare error."""

import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pipelocal as pl
from pipelocal.ranks import script
from tests.launching import start

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(96, 6, generator=GENERATOR), torch.arange(96) % 3


def batches(rows: int = 96) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X[:rows], Y[:rows]), batch_size=12)


class Remembers(nn.Module):
    """Keeps what it saw in a mask, a spectrum, and a mean that each pass makes anew."""

    seen: Tensor
    spectrum: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8, dtype=torch.bool))
        self.register_buffer("spectrum", torch.zeros(5, dtype=torch.cfloat))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.seen |= x.amax(0) > 1.5
                self.spectrum += 0.1 * torch.fft.rfft(x).mean(0)
                self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x * (1 + self.seen) - self.mean


class Counting(nn.Module):
    """A loss that keeps how often each class came."""

    frequency: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.ones(3))

    def forward(self, out: Tensor, target: Tensor) -> Tensor:
        if self.training:
            self.frequency += torch.bincount(target[:5], minlength=3)
        return F.cross_entropy(out, target, weight=self.frequency.sum() / self.frequency)


class Skips(nn.Module):
    """A layer that some batches leave out, as LayerDrop does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and random.random() < 0.6:
            return x
        return x + self.linear(x).relu()  # type: ignore[no-any-return]


def net(layer: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), layer(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def on_two_ranks(folder: Path, body: Any) -> str:
    ranks = start(folder, body, 2)
    codes = ranks.wait()
    assert codes == [0, 0], ranks.output()
    return ranks.output()


def test_buffers_that_are_no_plain_numbers_were_not_alike(tmp_path: Path) -> None:
    """Masks, a loss's and new tensors stayed each replica's own, and spectra lost their imaginary part."""

    def body(rank: int) -> None:
        pipe = pl.Pipeline(net(Remembers), stages=2, replicas="2", loss=Counting(), head="linear")
        pipe.fit(batches(), epochs=1, progress=False)
        assert pipe._fitted is not None
        stages = pipe._fitted[1]
        kept = {f"{s.number} {n}": b for s in stages for n, b in s.body.named_buffers()}
        kept |= {f"loss {s.number}": s.unsaved.buffers()["loss/frequency"] for s in stages}
        torch.save(kept, tmp_path / f"{rank}.pt")

    on_two_ranks(tmp_path / "ranks", body)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(one) == 5
    for name, buffer in one.items():
        assert torch.equal(buffer, other[name]), name
        assert buffer.any(), name
    assert one["1 1.spectrum"].imag.abs().sum() > 0.1
    assert one["loss 1"].sum() == 3 + 8 * 5 / 2  # float buffers: the mean of the changes


def test_parameters_without_a_gradient_were_stepped_once_all_had_had_one(tmp_path: Path) -> None:
    """By momentum and decay, where one process leaves them alone; and another way after going on."""

    def weights() -> dict[str, Tensor]:
        pipe = pl.Pipeline(net(Skips), stages=2, replicas="2", head="linear")
        pipe.fit(batches(), epochs=3, progress=False)
        return pipe.module().state_dict()

    def body(rank: int) -> None:
        torch.save(weights(), tmp_path / f"{rank}.pt")

    on_two_ranks(tmp_path / "ranks", body)
    there, here = torch.load(tmp_path / "0.pt", weights_only=True), weights()
    assert all(torch.equal(there[name], here[name]) for name in here)


def test_shares_of_weights_could_not_be_gathered_behind_the_run(tmp_path: Path) -> None:
    """module(), module(stage=) and a second fit ended in errors of torch's own."""

    def weights() -> list[dict[str, Tensor]]:
        options: dict[str, Any] = {"replicas": "2", "replicate": "fsdp", "head": "linear"}
        pipe = pl.Pipeline(net(nn.Identity), stages=2, **options)
        pipe.fit(batches(), epochs=1, progress=False)
        first = [pipe.module().state_dict(), pipe.module(stage=1).state_dict()]
        pipe.fit(batches(), epochs=1, progress=False)
        return [*first, pipe.module().state_dict()]

    def body(rank: int) -> None:
        torch.save(weights(), tmp_path / f"{rank}.pt")

    on_two_ranks(tmp_path / "ranks", body)
    for there, here in zip(
        torch.load(tmp_path / "1.pt", weights_only=True), weights(), strict=True
    ):
        assert there.keys() == here.keys()
        assert all(torch.equal(there[name], here[name]) for name in here)


@pytest.mark.parametrize("part", ["training", "test"])
def test_replicas_of_the_first_stage_read_data_of_other_lengths(tmp_path: Path, part: str) -> None:
    """Only the first batch was compared: wrong figures, or gloo's own abort."""

    def body(rank: int) -> None:
        pipe = pl.Pipeline(net(nn.Identity), stages=2, replicas="2", head="linear")
        rows = 96 if rank == 0 else 60
        if part == "training":
            pipe.fit(batches(rows), epochs=2, progress=False)
        else:
            pipe.evaluate(batches(rows))

    ranks = start(tmp_path, body, 2)
    assert all(ranks.wait())
    assert "other data than on rank 0: " in ranks.output()
    assert f"{part} samples (96 on rank 0, 60 on rank 1)" in ranks.output()


class Moving:
    """A loss over its own running mean, in a number."""

    def __init__(self) -> None:
        self.mean = 1.0

    def __call__(self, out: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(out, target)
        self.mean = 0.9 * self.mean + 0.1 * float(loss.detach())
        return loss / self.mean


def test_a_loss_kept_what_no_stage_and_no_snapshot_has() -> None:
    """Stages of one process shared it, those of two did not; nor did a run that goes on have it."""
    criterion = Counting()
    for loss in (Moving(), lambda out, target: criterion(out, target)):
        pipe = pl.Pipeline(net(nn.Identity), stages=2, loss=loss)
        with pytest.raises(pl.UserError, match="loss: called twice with the same numbers"):
            pipe.fit(batches(), epochs=1, progress=False)


@pytest.mark.parametrize(
    "options", [{"clip_norm": 1.0}, {"step_early": True}], ids=["clip_norm", "step_early"]
)
def test_sparse_gradients_ended_in_an_error_of_torch_s_own(options: dict[str, Any]) -> None:
    """Norms, counts of bytes and averages are not defined for them."""
    torch.manual_seed(0)
    embedding = nn.Sequential(nn.Embedding(9, 8, sparse=True), nn.Flatten())
    model = nn.Sequential(embedding, nn.Linear(32, 8), nn.Linear(8, 3))
    data = DataLoader(TensorDataset(torch.randint(9, (24, 4)), Y[:24]), batch_size=12)
    with pytest.raises(pl.UserError, match=r"stage 1: '0\.0' has sparse gradients"):
        pl.Pipeline(model, stages=2, **options).fit(data, epochs=1, progress=False)


def test_a_label_that_cannot_be_mixed_was_not_named() -> None:
    """one_hot refused it, without the sample."""
    labels = Y.clone()
    labels[55] = -100
    data = DataLoader(TensorDataset(X, labels), batch_size=12)
    task = pl.tasks.Classification(classes=3, ignore_index=-100)
    pipe = pl.Pipeline(net(nn.Identity), stages=2, task=task)
    with pytest.raises(pl.DataError, match=r"sample 55\): labels run from -100 to 2"):
        pipe.fit(data, epochs=1, progress=False, mixup=0.4)


def test_a_signal_to_end_broke_the_line_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun sends it to a rank that is about to say its own error."""
    ended: list[int] = []
    monkeypatch.setattr("pipelocal.ranks.script.os._exit", ended.append)
    monkeypatch.setattr(script, "say", lambda _: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    stderr = sys.stderr
    try:
        script.end_plainly(1)
        error = pl.UserError("no such thing")
        sys.excepthook(type(error), error, None)
    finally:
        sys.stderr = stderr
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended == [1]
