"""Defects of a Pipeline: what a run lost in silence, shared between stages, or took without a word."""

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pipelocal as pl
from pipelocal.checkpoint import writer
from pipelocal.checkpoint.snapshot import save_stage
from pipelocal.report.comparison import compare
from pipelocal.stage.update import Update
from pipelocal.tasks import Classification
from tests.launching import run_script

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(48, 6, generator=GENERATOR), torch.arange(48) % 3


class Counts(nn.Module):
    """Grows its output by how often it was trained, which no state dict says."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.register_buffer("mask", torch.ones(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
        return self.linear(x) * self.mask * (1 + self.count / 8)  # type: ignore[no-any-return]


class RunningLoss(nn.Module):
    """Divides by a running mean of itself, and counts batches."""

    mean: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(()))
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, out: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(out, target)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * loss.detach()
            self.seen += 1
        return loss / self.mean


class Slowing(torch.optim.SGD):
    """Takes smaller steps with every update, which it counts in its groups as Schedule-Free does."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, lr=lr)
        for group in self.param_groups:
            group["updates"], group["scale"] = 0, 1.0

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["updates"] += 1
            group["scale"] = 1 / group["updates"]
            group["lr"] = 0.1 * group["scale"]
        return super().step(closure)


class Fails(pl.Callback):
    """Ends a run in the middle."""

    def __init__(self, step: int = 8) -> None:
        self.step = step

    def on_batch_end(self, event: pl.BatchEnd) -> None:
        if event.stage == 2 and event.step == self.step:
            raise RuntimeError("the power is out")


def slowing(named: Iterable[tuple[str, Tensor]]) -> torch.optim.Optimizer:
    return Slowing([p for _, p in named], lr=0.1)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), Counts(), nn.ReLU(), nn.Linear(8, 3))


def fit(pipe: pl.Pipeline, *, epochs: int = 3, **options: Any) -> dict[str, Any]:
    data = DataLoader(TensorDataset(X, Y), batch_size=12)
    return pipe.fit(data, epochs=epochs, progress=False, **options)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for a, b in ((one.state_dict(), other.state_dict()), (_buffers(one), _buffers(other))):
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), name


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_buffers())


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": slowing},
        {"optimizer": slowing, "schedule": "cosine"},
        {"loss": RunningLoss()},
        {"head": lambda shape, _classes: Shares(shape[0])},
    ],
    ids=["optimizer", "optimizer and schedule", "loss", "buffers"],
)
def test_a_run_that_went_on_had_lost_what_changes_beside_the_weights(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """Counts in an optimizer's groups, buffers that no state dict holds, and those of a loss began anew."""

    def pipe() -> pl.Pipeline:
        return pl.Pipeline(net(), stages=2, snapshot_every=3, **options)

    whole, broken, again = pipe(), pipe(), pipe()
    fit(whole)
    with pytest.raises(pl.StageError, match="the power is out"):
        fit(broken, out=str(tmp_path / "run"), callbacks=[Fails()])
    fit(again, out=str(tmp_path / "run"))
    assert_same(whole.module(), again.module())
    assert_same(whole.module(stage=1), again.module(stage=1))
    loaded = pipe()
    loaded.load(str(tmp_path / "run"))
    assert_same(whole.module(), loaded.module())


def test_a_run_that_went_on_with_another_cut_had_lost_them_too(tmp_path: Path) -> None:
    """They go along with their units, and those of a loss with the head."""
    given: dict[str, Any] = {"snapshot_every": 3, "loss": RunningLoss()}
    broken = pl.Pipeline(net(), stages=2, **given)
    with pytest.raises(pl.StageError, match="the power is out"):
        fit(broken, out=str(tmp_path / "run"), callbacks=[Fails()])
    again = pl.Pipeline(net(), stages=3, **given)
    fit(again, out=str(tmp_path / "run"))
    assert _buffers(again.module())["1.count"] == 12
    assert again._fitted is not None
    assert again._fitted[1][-1].unsaved.buffers()["loss/seen"] == 12


def test_a_failed_run_still_wrote_and_deleted_snapshots_while_the_next_one_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook that ran fit again at once could find a file gone that it had just chosen."""

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.2)
        return save_stage(*arguments)

    monkeypatch.setattr(writer, "save_stage", slowly)
    broken = pl.Pipeline(net(), stages=2, snapshot_every=6)
    with pytest.raises(pl.StageError, match="the power is out"):
        fit(broken, out=str(tmp_path / "run"), callbacks=[Fails()])
    assert "snapshots" not in {thread.name for thread in threading.enumerate()}
    assert (tmp_path / "run/snapshots/step-00000006/manifest.json").exists()


class Shares(nn.Module):
    """A head with a count of its own."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.counts, self.linear = Counts(), nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.counts(x))  # type: ignore[no-any-return]


def test_a_second_fit_had_lost_buffers_that_no_state_dict_holds() -> None:
    """The copies that a Pipeline trains began each fit with those of the model given."""
    pipe = pl.Pipeline(net(), stages=2)
    fit(pipe)
    fit(pipe, epochs=1)
    count = _buffers(pipe.module())["1.count"]
    assert count == 16  # batches of 12 in four epochs


def test_an_optimizer_with_another_rate_keeps_it_and_what_it_counts() -> None:
    """Only what was given anew is taken in place of what was saved."""
    weight = nn.Parameter(torch.ones(2))
    old, new = Update(Slowing([weight], lr=0.1)), Update(Slowing([weight], lr=0.5))
    weight.grad = torch.ones(2)
    old.batch_done(1)
    new.load_state_dict(old.state_dict(), done=1)
    group = new.optimizer.param_groups[0]
    assert (group["lr"], group["updates"]) == (0.5, 1)


def test_stages_of_one_process_shared_the_head_and_the_loss_that_they_were_given() -> None:
    """One module that a function returned for two stages was trained by both."""
    head, loss = nn.Linear(8, 3), RunningLoss()
    before = head.weight.clone()
    pipe = pl.Pipeline(net(), stages=3, head=lambda _shape, _classes: head, loss=loss)
    fit(pipe)
    first, second = (pipe.module(stage=number).state_dict() for number in (1, 2))
    assert not torch.equal(first["head.weight"], second["head.weight"])
    assert torch.equal(head.weight, before)
    assert loss.mean == 1.0


def test_a_loss_with_parameters_was_never_trained() -> None:
    """No optimizer gets them; now that is refused."""
    loss = RunningLoss()
    loss.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(pl.UserError, match=r"RunningLoss has parameters to train \(scale\)"):
        fit(pl.Pipeline(net(), stages=2, loss=loss))


@pytest.mark.parametrize("use", ["evaluate", "step"])
def test_a_pipeline_that_was_used_before_fit_is_cut_only_once(use: str) -> None:
    """It failed with a bare ValueError where fit cut it elsewhere."""

    def one_first(request: Any) -> list[int]:
        del request
        return [1, 2]

    pipe = pl.Pipeline(net(), stages=2, balance=one_first)
    if use == "evaluate":
        pipe.evaluate(TensorDataset(X, Y))
    else:
        pipe.step(X, Y)
    units = [each["units"] for each in fit(pipe)["stages"]]
    assert units == ([["0"], ["1", "2"]] if use == "evaluate" else [["0", "1"], ["2"]])


def test_a_schedule_that_returns_nothing_was_none() -> None:
    """A forgotten ``return`` trained at a constant rate."""
    pipe = pl.Pipeline(net(), stages=2, schedule=lambda _optimizer, _total: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(pl.UserError, match="schedule: it makes NoneType"):
        fit(pipe)


def test_a_learning_rate_in_a_tensor_could_not_be_recorded(tmp_path: Path) -> None:
    """It is no number of JSON."""

    def adam(named: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for _, p in named], lr=torch.tensor(0.01))

    pipe = pl.Pipeline(net(), stages=2, optimizer=adam, log_every=1)
    fit(pipe, epochs=1, out=str(tmp_path / "run"))
    assert '"learning_rate": 0.00999' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_the_average_of_a_pipeline_could_not_be_read() -> None:
    """It was kept and saved, and no call returned it."""
    pipe = pl.Pipeline(net(), stages=2, ema=0.5, input_shape=(6,))
    with pytest.raises(pl.UserError, match="nothing was averaged yet"):
        pipe.module(averaged=True)
    fit(pipe)
    last, averaged = pipe.module().state_dict(), pipe.module(averaged=True).state_dict()
    assert last.keys() == averaged.keys()
    assert not torch.equal(last["0.weight"], averaged["0.weight"])


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (X[:4], Y[:3], r"x and target have \[4, 3\] rows"),
        (X[:4].numpy(), Y[:4], "x is ndarray: give a tensor"),
        (X[:4], Y[:4] + 7, "labels run from 7 to 9, but 3 classes allow 0 to 2"),
        (X[:4] * float("nan"), Y[:4], "stage 1, batch 1: the loss is NaN or infinite"),
        (X[:4, :5], Y[:4], "5"),
    ],
    ids=["rows", "type", "labels", "NaN", "shape"],
)
def test_a_single_batch_was_not_checked(x: Any, y: Tensor, said: str) -> None:
    """Labels out of range trained, and so did NaN."""
    pipe = pl.Pipeline(net(), stages=2, input_shape=(6,))
    pipe.step(X[:4], Y[:4])
    pipe = pl.Pipeline(net(), stages=2, input_shape=(6,)) if said.startswith("stage") else pipe
    with pytest.raises(pl.PipelocalError, match=said):
        pipe.step(x, y)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"memory_limit": 10**9}, "memory_limit is for balance='memory' or 'time'"),
        ({"memory_limit": -1, "balance": "memory"}, "memory_limit=-1: give a number of bytes"),
        ({"speeds": [1, 2]}, "speeds is for balance='time'"),
        ({"speeds": [1], "balance": "time"}, "give 2 numbers above 0"),
        ({"accumulate": 1.5}, "--accumulate 1.5: give a whole number"),
    ],
    ids=str,
)
def test_a_pipeline_took_arguments_that_had_no_effect(given: dict[str, Any], said: str) -> None:
    """The command line refused them."""
    with pytest.raises(pl.UserError, match=said):
        pl.Pipeline(net(), **{"stages": 2, **given})


class Sampler(torch.utils.data.Sampler[int]):
    """Fails at its first draw."""

    def __init__(self) -> None:
        pass

    def __iter__(self) -> Any:
        raise ValueError("no draw")

    def __len__(self) -> int:
        return 48


class Stops(pl.Callback):
    """Raises something in the middle of a run."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_batch_end(self, event: pl.BatchEnd) -> None:  # noqa: ARG002
        raise self.error


def fails(*_: Any) -> Any:
    raise KeyError("mine")


def stops(*_: Any) -> Any:
    raise StopIteration


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"head": fails}, r"head 'fails': KeyError: 'mine'"),
        ({"optimizer": fails}, r"optimizer: KeyError: 'mine'"),
        ({"schedule": fails}, r"schedule: KeyError: 'mine'"),
        ({"objective": fails}, r"objective: KeyError: 'mine'"),
        ({"balance": fails}, r"--balance .*fails.*: KeyError: 'mine'"),
        ({"loss": stops}, r"stage 1, batch 1: StopIteration"),
        ({"head": 3}, "head=3: give a head's name, or a function"),
        ({"optimizer": Slowing([X], lr=0.1)}, "optimizer=Slowing: give a function"),
        ({"loss": "mse"}, "loss='mse': give a function of outputs and targets"),
        ({"seed": 1.5}, "seed=1.5: give a whole number"),
        ({"freeze_stage": 3}, "freeze_stage=3: give text"),
        ({"input_shape": 6}, "input_shape=6: give a list"),
        ({"stages": None, "cut": [1]}, r"cut=\[1\]: give a list of units' names"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, dict) else "",
)
def test_what_a_user_s_function_raised_ended_in_a_bare_error(
    given: dict[str, Any], said: str
) -> None:
    """And so did arguments of the wrong kind."""
    with pytest.raises(pl.PipelocalError, match=said):
        fit(pl.Pipeline(net(), **{"stages": 2, **given}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"callbacks": [Stops(StopIteration())]}, "stage 1, batch 1: StopIteration"),
        ({"callbacks": [Stops(SystemExit(0))]}, "stage 1, batch 1: SystemExit: 0"),
        ({"callbacks": Stops(KeyError())}, "callbacks=Stops: give a list"),
        ({"batch_size": "8"}, "batch_size='8': give a whole number"),
        ({"out": 3}, "out=3: give a folder"),
    ],
    ids=["StopIteration", "SystemExit", "no list", "text", "number"],
)
def test_a_run_that_a_callback_ended_ended_without_a_word(
    options: dict[str, Any], said: str
) -> None:
    """SystemExit(0) was a success, and StopIteration was swallowed by a context manager."""
    with pytest.raises(pl.PipelocalError, match=said):
        fit(pl.Pipeline(net(), stages=2), **options)


def test_a_sampler_that_fails_ended_in_a_bare_error() -> None:
    """It is asked before the first batch."""
    data = DataLoader(TensorDataset(X, Y), 12, sampler=Sampler())
    with pytest.raises(pl.PipelocalError, match="train: the sampler failed: ValueError: no draw"):
        pl.Pipeline(net(), stages=2).fit(data, epochs=1, progress=False)


def test_complex_targets_lost_their_imaginary_part() -> None:
    """They were made whole numbers."""
    data = TensorDataset(X, torch.complex(Y.float(), Y.float()))
    with pytest.raises(pl.PipelocalError, match=r"targets of torch.complex64: give real and"):
        pl.Pipeline(net(), stages=2).fit(data, epochs=1, progress=False)


def test_a_model_without_values_ended_in_a_bare_error() -> None:
    """Weights on the meta device have none."""
    with pytest.raises(pl.PipelocalError, match="tensors without values, on the meta device"):
        fit(pl.Pipeline(net().to("meta"), stages=2))


def test_hooks_on_the_whole_of_a_sequential_were_lost() -> None:
    """Stages call its children, which keep theirs."""
    model = net()
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(pl.PipelocalError, match=r"hooks on the nn.Sequential itself would be lost"):
        fit(pl.Pipeline(model, stages=2))


def test_a_class_of_the_default_objective_was_called_with_a_place() -> None:
    """Other recipes may be given as classes."""
    assert fit(pl.Pipeline(net(), stages=2, objective=pl.Greedy), epochs=1)["steps"] == 4


@pytest.mark.parametrize("head", ["auto", "guided"])
def test_bytes_of_a_run_that_went_on_were_too_few_or_too_many(tmp_path: Path, head: str) -> None:
    """The summary divided the last process's by all batches; weights under way back counted twice."""

    def pipe() -> pl.Pipeline:
        return pl.Pipeline(net(), stages=2, snapshot_every=9, log_every=1, head=head)

    def counted(folder: str) -> list[int]:
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        trained = {(r["stage"], r["step"]): r for r in records if r["event"] == "train"}
        return [sum(r[f"{way}_bytes"] for r in trained.values()) for way in ("sent", "backward")]

    whole = fit(pipe(), epochs=6, out=str(tmp_path / "whole"))
    with pytest.raises(pl.StageError, match="the power is out"):
        fit(pipe(), epochs=6, out=str(tmp_path / "run"), callbacks=[Fails(12)])
    last = fit(pipe(), epochs=6, out=str(tmp_path / "run"))
    assert (whole["began_at"], last["began_at"]) == (0, 9)
    sent = [run["stages"][0]["sent_bytes"] / (24 - run["began_at"]) for run in (whole, last)]
    assert sent[0] == sent[1]
    assert counted("whole") == counted("run")
    assert "time and bytes from batch" in str(
        compare([str(tmp_path / folder) for folder in ("whole", "run")]).rows
    )


def test_the_batch_of_an_error_was_that_of_the_stream() -> None:
    """Ends of epochs and batches of evaluations were counted, and from 0, unlike metrics and snapshots."""
    data = DataLoader(TensorDataset(X, Y), 12)
    pipe = pl.Pipeline(net(), stages=2)
    with pytest.raises(pl.StageError, match="stage 2, batch 8: RuntimeError: the power is out"):
        pipe.fit(data, data, epochs=3, progress=False, callbacks=[Fails()])


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_an_error_in_an_evaluation_named_a_batch_of_the_stream() -> None:
    """Nothing told it from a training batch."""
    bad = X.clone()
    bad[-1] = 3e38  # no NaN of its own, which would be refused
    data, test = DataLoader(TensorDataset(X, Y), 12), DataLoader(TensorDataset(bad, Y), 12)
    model = nn.Sequential(Squares(), *net())
    pipe, batches = pl.Pipeline(model, stages=2), len(data)
    said = f"stage 1, test batch {batches}: in the evaluation after batch {2 * batches} the loss is NaN"
    with pytest.raises(pl.StageError, match=said) as raised:
        pipe.fit(data, test, epochs=2, evaluate_every=2, progress=False)
    assert (raised.value.batch, raised.value.test) == (batches, True)


class SaysItsMode(nn.Module):
    """A loss that notes whether it is in training mode in evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def __deepcopy__(self, _: object) -> "SaysItsMode":
        return self  # one list for all stages

    def forward(self, out: Tensor, target: Tensor) -> Tensor:
        if not out.requires_grad:
            self.modes.append(self.training)
        return F.cross_entropy(out, target)


def test_a_loss_was_in_training_mode_in_evaluations_beside_a_head_task() -> None:
    """Only the loss that a stage trains by was switched, and not the task's, which is reported."""
    loss = SaysItsMode()
    smooth = Classification(label_smoothing=0.1)
    data = DataLoader(TensorDataset(X, Y), 12)
    pipe = pl.Pipeline(net(), stages=2, loss=loss, head_task=smooth)
    pipe.fit(data, data, epochs=1, progress=False)
    assert len(loss.modes) >= 8
    assert not any(loss.modes)


class ChangesWhatIsKept(nn.Module):
    """Adds to the output of an exp, which autograd keeps for its backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.exp()
        z = 2 * y
        y.add_(1)
        return z + y


def test_the_first_batch_took_wrong_gradients_of_what_was_changed_in_place() -> None:
    """Its memory is counted by hooks, with which autograd does not look."""
    model = nn.Sequential(nn.Linear(6, 8), ChangesWhatIsKept(), nn.Linear(8, 3))
    with pytest.raises(pl.StageError, match=r"batch 1: .* modified by an inplace operation"):
        fit(pl.Pipeline(model, stages=2), epochs=1)


AGAIN = """
import os
import torch
import pipelocal as pl
from torch import nn
from torch.utils.data import TensorDataset

data = TensorDataset(torch.randn(24, 6), torch.arange(24) % 3)
for lr in (0.1, 1e30, 0.1):
    pipe = pl.Pipeline(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
        stages=2,
        device="cpu",
        optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=lr),
    )
    try:
        pipe.fit(data, epochs=1, batch_size=8, progress=False)
        print("fitted", flush=True)
    except pl.PipelocalError as error:
        print(type(error).__name__, error, flush=True)
os._exit(0)
"""


def test_another_fit_after_one_that_failed_over_ranks(tmp_path: Path) -> None:
    """It ended in torch's ValueError: trying to initialize the default process group twice."""
    script = tmp_path / "again.py"
    script.write_text(AGAIN)
    said = run_script(script, 2)
    assert said.count("fitted") == 2
    assert said.count("the loss is NaN or infinite") == 2
    assert said.count("there is a process group of torch.distributed already") == 2
