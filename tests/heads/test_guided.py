"""Guided heads: copies of the classifier, drawn to the last stage's, whose weights flow back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pipelocal
from pipelocal import cli
from pipelocal.api.one_batch import train_on_batch
from pipelocal.checkpoint.snapshot import SnapshotFolder, load_stage
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import load_dataset
from pipelocal.data.batches import BatchStream, everything
from pipelocal.errors import UserError
from pipelocal.heads.guided import share_of
from pipelocal.objectives import LoCo
from tests.heads.test_twin import doubles
from tests.interrupted import train_until
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, train_alone

STAGES, EVERY, STEPS = 4, 2, 12
MODEL = f"{Path(__file__).with_name('test_twin.py')}:{doubles.__name__}"
"""In float64, with BatchNorm in its units."""
COMMON = ["--model", MODEL, "--stages", str(STAGES), "--objective", "greedy", "--lr", "0.05"]
COMMON += ["--train-samples", "150", "--epochs", "4"]
"""Three batches an epoch, the last of which is short."""
GUIDED = ["--head", "guided=1", "--guide-every", str(EVERY)]


def classifier_of(state: dict[str, Any], stage: int) -> dict[str, Tensor]:
    """The classifier in the saved state of a stage, or its copy in the stage's head."""
    prefix = "" if stage == STAGES else "classifier."
    return {
        name.removeprefix(prefix): value
        for name, value in state["head"].items()
        if name.startswith(prefix)
    }


@torch.no_grad()
def draw(copies: list[nn.Module], then: list[dict[str, Tensor]], share: float) -> None:
    """By the formula: stage k's copy moves to the classifier of K - k periods ago, if there was one."""
    for hops, copy in enumerate(reversed(copies), start=1):
        if len(then) > hops:
            for name, own in copy.named_parameters():
                own.lerp_(then[-1 - hops][name], share)


def by_the_formula(share: float) -> list[dict[str, Tensor]]:
    """The weights of every stage of twins in one process, whose classifiers are drawn by hand."""
    config = TrainConfig(
        model=MODEL,
        stages=STAGES,
        objective="greedy",
        lr=0.05,
        epochs=4,
        head="twin=1",
        train_samples=150,
    )
    blueprint = blueprint_of(config)
    dataset = load_dataset("digits", root=None, seed=0).first(150)
    stream = BatchStream(dataset, batch_size=64, seed=0)
    stages = [
        blueprint.build_stage(number, device=torch.device("cpu"), total_steps=STEPS)
        for number in range(1, STAGES + 1)
    ]
    copies = [list(stage.head.children())[-1] for stage in stages[:-1]]
    then: list[dict[str, Tensor]] = []
    for epoch in range(4):
        for batch in stream.training(epoch, 0, everything):
            assert batch is not None
            train_on_batch(blueprint, stages, batch.x, batch.target)
            if stages[0].steps % EVERY == 0:
                named = stages[-1].head.named_parameters()
                then.append({name: weight.detach().clone() for name, weight in named})
                draw(copies, then, share)
    return [{**stage.body.state_dict(), **stage.head.state_dict()} for stage in stages]


def test_it_is_the_formula_bit_for_bit(tmp_path: Path) -> None:
    """Weights, and statistics of the copies' BatchNorm, which are not drawn."""
    run = train_alone([*COMMON, *GUIDED], tmp_path / "run")
    wanted = by_the_formula(share_of(EVERY))
    for number, weights in enumerate(wanted, start=1):
        state = load_stage(run / "stages", number)
        for name, value in state["head"].items():
            assert torch.equal(value, weights[name]), (number, name)
        assert len(state["body"]) + len(state["head"]) == len(weights)


def test_drawn_all_the_way_it_is_the_classifier_of_so_many_periods_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen stage's copy stays, and what comes to it still goes on to the stage before."""
    monkeypatch.setattr("pipelocal.pipeline.guide.share_of", lambda _every: 1.0)
    snapshots = ["--snapshot-every", str(EVERY), "--keep-snapshots", "9"]
    run = train_alone([*COMMON, *GUIDED, *snapshots, "--freeze-stage", "2:7"], tmp_path / "run")
    folders = SnapshotFolder(run).folders()[::-1]
    saved = [[load_stage(f, number) for number in range(1, STAGES + 1)] for f in folders]
    assert len(saved) == STEPS // EVERY
    for period, states in enumerate(saved):
        for number, hops in ((1, 3), (2, 2), (3, 1)):
            own = classifier_of(states[number - 1], number)
            if number == 2 and period >= 3:
                wanted = classifier_of(saved[-1][number - 1], number)
            elif period >= hops:
                wanted = classifier_of(saved[period - hops][-1], STAGES)
            else:  # none has come
                continue
            for name, value in own.items():
                assert torch.equal(value, wanted[name]), (period, number, name)


def backward_bytes(run: Path) -> list[int]:
    summary = json.loads((run / "summary.json").read_text())
    return [stage["backward_bytes"] for stage in summary["stages"]]


def test_never_drawn_it_is_a_twin(tmp_path: Path) -> None:
    short = [*COMMON, "--epochs", "1", "--head"]
    never = train_alone([*short, "guided=1", "--guide-every", "4"], tmp_path / "never")
    twin = train_alone([*short, "twin=1"], tmp_path / "twin")
    assert_same_bits(never, twin)
    assert backward_bytes(never) == [0] * STAGES


def test_over_ranks_it_equals_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an uneven last batch; and from a snapshot on, in which weights are under way."""
    options = [*COMMON, *GUIDED, "--window", "1", "--snapshot-every", "5"]
    alone, out = train_alone(options, tmp_path / "alone"), tmp_path / "ranks"
    train_until(6, options, out, monkeypatch)
    run_ranks(tmp_path / "log", ["train", *options, "--out", str(out)], 3)
    assert_same_bits(alone, out)
    one = 8 * (6 * 10 + 10)  # of the classifier, in float64
    assert backward_bytes(alone) == [0, 4 * one, 5 * one, 6 * one]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--accumulate", "2", "--guide-every", "4"]])
def test_over_as_many_ranks_as_stages(tmp_path: Path, more: list[str]) -> None:
    options = [*COMMON, *GUIDED, *more]
    alone, out = train_alone(options, tmp_path / "alone"), tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *options, "--out", str(out)], 4)
    assert_same_bits(alone, out)
    assert backward_bytes(alone) == backward_bytes(out)


@pytest.mark.slow
def test_a_run_that_goes_on_with_another_cut_begins_anew_to_draw(tmp_path: Path) -> None:
    first = train_alone([*COMMON, *GUIDED, "--snapshot-every", "5"], tmp_path / "first")
    other = [*COMMON, *GUIDED, "--stages", "3", "--epochs", "6", "--resume", str(first)]
    second = train_alone(other, tmp_path / "second")
    (exchanges,) = {
        load_stage(second / "stages", n)["worker"]["way_back"]["exchanges"] for n in (1, 2)
    }
    assert exchanges == 3, "of batches 14, 16 and 18"


@pytest.mark.parametrize("given", [{"objective": LoCo()}, {"head": "guided"}])
def test_a_step_that_would_leave_out_what_flows_back_is_refused(given: dict[str, Any]) -> None:
    """Bodies of LoCo and PGL did not learn in it, and nobody said so."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    pipe = pipelocal.Pipeline(net, stages=2, **given)
    with pytest.raises(UserError, match=r"here stages send something back .*: use fit\(\)"):
        pipe.step(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--objective", "pgl"], "--head guided sends weights back, and PGL gradients"),
        (["--objective", "loco"], "--head guided sends weights back, and LoCo gradients"),
        (["--objective", "bp"], "trains the uncut model"),
        (["--objective", "deep-supervision"], "trains the uncut model"),
        (["--objective", "anp", "--model", "rnn"], "ANP has none"),
        (["--objective", "lg-fg", "--model", "local-mixer"], "lg-fg has none"),
        (["--objective", "bwbpf"], "--head guided=1 ends in a copy"),
        (["--bp-free"], "--bp-free has none"),
        (["--head-loss", "supcon"], "--head guided=1 ends in a copy"),
        (["--replicas", "2", "--replicate", "fsdp"], "--replicate fsdp"),
        (["--head", "guided=x"], "guided=x"),
        (["--head", "twin", "--guide-every", "3"], "--guide-every 3"),
    ],
)
def test_what_it_does_not_go_with_is_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", "--plain", "--head", "guided=1", *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_the_plan_and_the_start_say_what_flows_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guided = ["--model", "resnet8", "--stages", "4", "--head", "guided", "--objective", "greedy"]
    wanted = ["--data", "digits", "--batch-size", "8", "--device", "meta", "--json"]
    assert cli.run(["plan", *guided, *wanted]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    size = 4 * (64 * 10 + 10)
    assert [stage["backward_bytes"] for stage in stages] == [0, *3 * [size / 8]]
    assert stages[0]["head"] == "guided"
    train_alone([*guided, "--batch-size", "8", "--max-steps", "1"], tmp_path / "run")
    said = capsys.readouterr()
    line = "flow back after one batch in 8: 2.5 KiB over each edge, used 8 batches later"
    assert line in said.err + said.out
