"""The distance of local training from back-propagation, on demand."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelocal import cli
from pipelocal.pipeline.bp_gap import BackPropagationGap, Gap
from pipelocal.stage.stage import Stage
from tests.launching import launch
from tests.objective.stages import NETS, Net, make_stage
from tests.test_transparency import assert_same_bits, train_alone

QUICK = ["--stages", "4", "--max-steps", "6", "--log-every", "2"]


def gaps_of(stages: list[Stage], net: Net) -> list[Gap]:
    """Of one greedy batch, which trains the stages one after the other."""
    gap = BackPropagationGap(stages)
    gap.begin(net.x, net.target)
    found, x = [], net.x
    for stage in stages:
        output = stage.forward(x)
        delta = stage.output_gradient(net.target)
        stage.reconcile(None)
        one = gap.compare(stage, delta)
        assert one is not None
        found.append(one)
        stage.update()
        x = output
    assert gap.compare(stages[0], net.x) is None, "each batch is asked for anew"
    return found


def stages_of(net: Net, heads: list[nn.Module]) -> list[Stage]:
    return [
        make_stage(body, head, number=k)
        for k, (body, head) in enumerate(zip(net.bodies, heads, strict=True), start=1)
    ]


@pytest.mark.parametrize("name", NETS)
def test_heads_that_are_the_rest_of_the_network_leave_no_gap(name: str) -> None:
    """F2: local training is back-propagation then."""
    net = NETS[name]()
    heads = [net.heads[-1]]
    for body in reversed(net.bodies[1:]):
        heads.insert(0, nn.Sequential(copy.deepcopy(body), copy.deepcopy(heads[0])))
    for gap in gaps_of(stages_of(net, heads), net):
        assert gap.update_cosine == pytest.approx(1.0)
        assert gap.residual_sum == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_other_heads_leave_one_everywhere_but_on_the_last_stage(name: str) -> None:
    net = NETS[name]()
    *others, last = gaps_of(stages_of(net, net.heads), net)
    assert last.update_cosine == pytest.approx(1.0)
    assert last.residual_sum == pytest.approx(0.0, abs=1e-9)
    for gap in others:
        assert gap.update_cosine < 0.99
        assert gap.residual_sum > 0.1


@pytest.mark.parametrize("objective", ["greedy", "sgr"])
def test_measuring_changes_nothing_and_is_written_down(tmp_path: Path, objective: str) -> None:
    every = ["--reconcile-every", "2"] if objective == "sgr" else []
    arguments = [*QUICK, "--objective", objective, *every]
    plain = train_alone(arguments, tmp_path / "plain")
    measured = train_alone([*arguments, "--measure-bp-gap", "3"], tmp_path / "measured")
    assert_same_bits(plain, measured)
    records = [json.loads(line) for line in (measured / "metrics.jsonl").read_text().splitlines()]
    gaps = [record for record in records if record["event"] == "bp_gap"]
    assert [(gap["stage"], gap["step"]) for gap in gaps] == [
        (stage, step) for step in (1, 4) for stage in (1, 2, 3, 4)
    ]
    assert all(-1 <= gap["update_cosine"] <= 1 + 1e-6 for gap in gaps)
    if objective == "greedy":
        assert all(gap["residual_sum"] < 1e-5 for gap in gaps if gap["stage"] == 4)


def test_over_ranks_it_is_refused_in_one_line(tmp_path: Path) -> None:
    arguments = ["train", *QUICK, "--measure-bp-gap", "1", "--out", str(tmp_path / "run")]
    ranks = launch(tmp_path / "log", arguments, 2)
    assert ranks.wait() == [cli.USER_ERROR] * 2
    assert "--measure-bp-gap needs all stages in one process" in ranks.output(0)


def test_the_stages_are_as_they_were(tmp_path: Path) -> None:
    """Back-propagation beside a batch moves no buffer and leaves no gradient."""
    net = NETS["conv"]()
    stages = stages_of(net, net.heads)
    before = [
        {name: value.clone() for name, value in stage.body.state_dict().items()} for stage in stages
    ]
    BackPropagationGap(stages).begin(net.x, net.target)
    for stage, state in zip(stages, before, strict=True):
        after = stage.body.state_dict()
        assert all(torch.equal(after[name], value) for name, value in state.items())
        assert all(parameter.grad is None for parameter in stage.body.parameters())
