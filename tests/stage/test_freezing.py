"""Stages that stop training: when, what changes no more, and what still works."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pipelocal import cli
from pipelocal.errors import UserError
from pipelocal.models import build_chain
from pipelocal.models.layers import PooledLinear
from pipelocal.results.early_exit import load_with_heads
from pipelocal.stage.freezing import Freezing, parse_freezing
from pipelocal.stage.stage import Stage
from pipelocal.tasks.classification import cross_entropy
from tests.launching import run_ranks
from tests.objective.stages import make_stage, same_bits
from tests.test_transparency import assert_same_bits, train_alone

X, TARGET = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def a_stage() -> Stage:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    return make_stage(body, PooledLinear((4, 2, 2), 3), momentum=0.9)


def a_frozen_stage() -> Stage:
    stage = a_stage()
    for _ in range(3):
        stage.step(X, TARGET)
    stage.freeze()
    return stage


def test_after_so_many_batches() -> None:
    freezing = Freezing(after=5, patience=1)
    assert [freezing.due(steps, 1.0) for steps in (0, 4, 5, 6)] == [False, False, True, True]


def test_on_a_plateau() -> None:
    """Less than one percent below the best is no improvement; better epochs start the count anew."""
    freezing = Freezing(after=None, patience=2)
    losses = [None, 1.0, None, 0.995, 0.9, 0.95, None, 0.895]
    assert [freezing.due(0, loss) for loss in losses] == [False] * 7 + [True]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1", "give stages with the batch after which"),
        ("1:soon", "give stages with the batch after which"),
        ("1:5,", "give stages with the batch after which"),
        ("1:-5", "give stages with the batch after which"),
        ("1:plateau=", "give stages with the batch after which"),
        ("1:plateau=-1", "give stages with the batch after which"),
        ("1:5=5", "give stages with the batch after which"),
        ("1:plateau=0", "a plateau of 0 epochs is none: give at least 1"),
        ("0:5", "there is no stage 0, stages are 1 to 4"),
        ("5:5", "there is no stage 5"),
        ("2:5,2:plateau", "stage 2 is named twice"),
        ("1:0,2:0,3:0,4:0", "no stage is left to train"),
    ],
)
def test_lists_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_freezing(text, stages=4)


@pytest.mark.parametrize(("word", "epochs"), [("plateau", 3), (" plateau=1", 1), ("plateau=5 ", 5)])
def test_so_many_epochs_are_a_plateau(word: str, epochs: int) -> None:
    """The first one is the best so far, and none."""
    freezing = parse_freezing(f"2:7,3:{word}", stages=4)[3]
    assert [freezing.due(0, 1.0) for _ in range(epochs + 1)] == [False] * epochs + [True]


def test_a_stage_that_there_is_not_is_one_line_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (["--stages", "2"], ["--cut", "2,2"]):
        arguments = ["train", *options, "--freeze-stage", "3:5", "--out", str(tmp_path / "run")]
        assert cli.run(arguments) == 2
        assert "there is no stage 3, stages are 1 to 2" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_nothing_of_a_frozen_stage_changes() -> None:
    stage = a_frozen_stage()
    before = copy.deepcopy([stage.body.state_dict(), stage.head.state_dict()])
    stage.step(X, TARGET)
    assert same_bits(before[0], stage.body.state_dict())
    assert same_bits(before[1], stage.head.state_dict())
    assert stage.steps == 4
    assert stage.frozen_at == 3
    assert not stage.optimizer.state


def test_a_frozen_stage_feeds_what_it_would_in_evaluation() -> None:
    """No dropout, and BatchNorm by its running statistics: the next stage's input settles too."""
    stage = a_frozen_stage()
    fed = stage.step(X, TARGET).output
    assert torch.equal(fed, stage.evaluate(X)[0])


def test_its_output_gradient_is_still_right() -> None:
    stage = a_frozen_stage()
    out = stage.evaluate(X)[0].requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(stage.head(out), TARGET), out)
    assert torch.equal(stage.step(X, TARGET).output_gradient, expected)


def not_of_stage_1(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same method of a stage, which is not called for the first one."""

    def checked(stage: Stage, *args: Any, **kwargs: Any) -> Any:
        assert stage.number != 1
        return method(stage, *args, **kwargs)

    return checked


@contextmanager
def nothing_saved() -> Iterator[None]:
    saved: list[torch.Size] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.shape)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
    assert not saved


def test_feeding_keeps_no_activations() -> None:
    stage = a_frozen_stage()
    with nothing_saved():
        stage.forward(X)
        stage.local_loss(TARGET)
    assert float(stage.metrics(TARGET).loss) > 0
    with pytest.raises(AssertionError), nothing_saved():  # the check can fail
        a_stage().forward(X)


@pytest.mark.parametrize("objective", [pytest.param("greedy", marks=pytest.mark.slow), "sgr"])
def test_a_run_keeps_what_the_stage_was_when_it_froze(tmp_path: Path, objective: str) -> None:
    """And later stages go on."""
    common = ["--stages", "3", "--objective", objective, "--schedule", "constant"]
    short = train_alone([*common, "--max-steps", "10"], tmp_path / "short")
    arguments = [*common, "--max-steps", "30", "--freeze-stage", "1:10,2:20"]
    alone = train_alone(arguments, tmp_path / "alone")

    def bodies(run: Path, stage: int) -> dict[str, Tensor]:
        state = torch.load(run / "stages" / f"stage-{stage}.pt", weights_only=True)
        body: dict[str, Tensor] = state["body"]
        return body

    assert same_bits(bodies(short, 1), bodies(alone, 1))
    assert not same_bits(bodies(short, 3), bodies(alone, 3))
    stages = json.loads((alone / "summary.json").read_text())["stages"]
    assert [stage["frozen_at"] for stage in stages] == [10, 20, None]
    assert [stage["steps"] for stage in stages] == [30, 30, 30]
    assert all(stage["loss"] is not None for stage in stages)
    out = tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *arguments, "--out", str(out)], 3)
    assert_same_bits(alone, out)


@pytest.mark.parametrize("objective", ["greedy", "sgr"])
def test_frozen_from_the_first_batch(
    tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage feeds the others as it is built. Its head learns nothing, and is left out of everything."""
    options = ["--model", "mlp", "--stages", "3", "--objective", objective, "--freeze-stage", "1:0"]
    options += ["--max-steps", "12"]
    with monkeypatch.context() as patch:
        for name in ("output_gradient", "local_loss", "metrics"):
            patch.setattr(Stage, name, not_of_stage_1(getattr(Stage, name)))
        run = train_alone(options, tmp_path / "alone")
    state = torch.load(run / "stages" / "stage-1.pt", weights_only=True)
    chain = build_chain("mlp", input_shape=(1, 8, 8), classes=10, seed=0)
    assert same_bits(state["body"], chain.whole_state(chain.build(0, 2, seed=0), 0, 2))
    assert state["optimizer"]["state"] == {}
    summary = json.loads((run / "summary.json").read_text())
    first, second, third = summary["stages"]
    assert (first["frozen_at"], first["loss"], first["eval_accuracy"]) == (0, None, None)
    assert second["reconciliation"] is None
    assert (third["reconciliation"] is None) == (objective == "greedy")
    # Both edges carry the same, but for delta.
    assert (first["sent_bytes"] < second["sent_bytes"]) == (objective == "sgr")
    network = load_with_heads(str(run))
    x = torch.randn(50, 1, 8, 8)
    heard = [logits.softmax(-1) for logits in network.all_logits(x)[1:]]
    assert torch.equal(network.ensemble(x), torch.stack(heard).mean(0))
    assert set(network.predict(x, until=0.0).stage.tolist()) == {2}
    if objective == "sgr":
        run_ranks(tmp_path / "log", ["train", *options, "--out", str(tmp_path / "ranks")], 2)
        assert_same_bits(run, tmp_path / "ranks")


def test_plateau_and_gap_in_a_run(tmp_path: Path) -> None:
    """A stage whose learning rate is next to nothing stands on a plateau from the first epoch on."""
    arguments = ["--model", "mlp", "--stages", "2", "--lr", "1e-9", "--epochs", "4"]
    arguments += ["--freeze-stage", "1:plateau=2", "--measure-bp-gap", "20"]
    run = train_alone(arguments, tmp_path / "run")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (freeze,) = (record for record in records if record["event"] == "freeze")
    assert (freeze["stage"], freeze["step"]) == (1, 3 * 23)
    gaps = {(r["stage"], r["step"]) for r in records if r["event"] == "bp_gap"}
    assert (1, 81) not in gaps
    assert (2, 81) in gaps
