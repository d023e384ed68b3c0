"""BWBPF and deep supervision: who learns from which loss, in float64; and their runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal import load
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import DataInfo
from pipelocal.errors import UserError
from pipelocal.objective import BWBPF, Greedy, Section
from pipelocal.seeding import seeded
from pipelocal.stage.stage import Stage
from pipelocal.tasks import Classification
from tests.interrupted import train_until
from tests.launching import run_ranks
from tests.objective.stages import make_stage, place
from tests.test_transparency import assert_same_bits, train_alone

LABELS = torch.tensor([0, 2, 1, 1, 0])


def test_only_the_last_stage_is_another() -> None:
    last = replace(place(4), sections=[Section(stop=1, build_head=lambda: nn.Linear(4, 3))])
    last = replace(last, head_loss=Classification().loss)
    assert type(BWBPF().for_stage(place(3))) is Greedy
    assert type(BWBPF().for_stage(last)) is not Greedy
    assert type(BWBPF(strict=False).for_stage(last)) is Greedy


def test_the_global_loss_trains_the_classifier_alone() -> None:
    """The body's gradient is that of the local loss, the classifier's that of a regression on features."""
    with seeded(0, "bwbpf"):
        body = nn.Sequential(nn.Linear(6, 4), nn.Tanh()).double()
        local, classifier = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
        x = torch.randn(5, 6).double()
    last = replace(place(4), sections=[Section(stop=2, build_head=lambda: local)])
    objective = BWBPF().for_stage(replace(last, head_loss=Classification().loss))
    stage = make_stage(body, classifier, objective=objective)
    stage.forward(x)
    stage.output_gradient(LABELS)
    stage.reconcile(None)
    found = [p.grad for p in (*body.parameters(), *local.parameters(), *classifier.parameters())]

    mine = F.cross_entropy(local(body(x)), LABELS)
    expected = [*torch.autograd.grad(mine, [*body.parameters(), *local.parameters()])]
    features = body(x).detach()
    regression = F.cross_entropy(classifier(features), LABELS)
    expected += torch.autograd.grad(regression, list(classifier.parameters()))
    for value, wanted in zip(found, expected, strict=True):
        assert value is not None
        assert torch.equal(value, wanted)
    metrics = stage.metrics(LABELS)
    assert torch.allclose(metrics.loss, mine + regression)
    assert torch.equal(metrics.figures["local loss"], mine.detach())
    right = (classifier(features).argmax(1) == LABELS).sum()
    assert metrics.sums["accuracy"] == right, "what the classifier says counts"


def test_what_the_classifier_takes_beside_ends_there_too() -> None:
    """The global loss reached the body through all tensors but the main one."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.beside = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.main(x).tanh(), self.beside(x).tanh()

    class Both(nn.Module):
        takes_beside = True

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
            out: Tensor = self.linear(torch.cat(both, -1))
            return out

    with seeded(0, "beside"):
        body, local, classifier = Two().double(), nn.Linear(4, 3).double(), Both().double()
        x = torch.randn(5, 6).double()
    last = replace(place(4), sections=[Section(stop=1, build_head=lambda: local)])
    objective = BWBPF().for_stage(replace(last, head_loss=Classification().loss))
    stage = make_stage(body, classifier, objective=objective)
    stage.forward(x)
    stage.output_gradient(LABELS)
    stage.reconcile(None)
    mine = F.cross_entropy(local(body(x)[0]), LABELS)
    for parameter, wanted in zip(
        body.main.parameters(), torch.autograd.grad(mine, [*body.main.parameters()]), strict=True
    ):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, wanted)
    assert all(parameter.grad is None for parameter in body.beside.parameters())
    assert all(parameter.grad is not None for parameter in classifier.parameters())


def test_the_default_head_is_another_than_the_classifier() -> None:
    """``auto`` was the classifier again behind the last unit, and with that the method greedy."""
    large = DataInfo(name="images", sample_shape=(3, 16, 16), classes=10)
    for model, info, name in (("mlp", None, "mlp"), ("resnet8", large, "conv")):
        config = TrainConfig(model=model, objective="bwbpf", stages=3)
        blueprint = blueprint_of(config, info=info)
        assert blueprint.heads.name(len(blueprint.chain.units)) == name
    with pytest.raises(UserError, match=r"--head twin .* choose auto, conv"):
        validate(TrainConfig(model="mlp", objective="bwbpf", head="twin"))


def test_heads_of_deep_supervision_are_those_of_stages() -> None:
    """By the budget, which is a share of what a stage leaves of the network: uncut, there are none."""

    def names(objective: str) -> list[str]:
        config = TrainConfig(model="resnet8", stages=4, head_budget=0.1, objective=objective)
        blueprint = blueprint_of(config)
        cuts = blueprint.sections or blueprint.cuts
        return [blueprint.heads.name(cut.stop) for cut in cuts[:-1]]

    assert names("deep-supervision") == names("greedy")


def deep(stages: int = 4) -> Stage:
    """An MLP for the digits under deep supervision, in float64."""
    config = TrainConfig(model="mlp", objective="deep-supervision", stages=stages, head="mlp")
    stage = blueprint_of(config).build_stage(1, device=torch.device("cpu"), total_steps=1)
    for module in stage.modules:
        module.double()
    return stage


def by_hand(stage: Stage, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The losses of all heads, and the outputs of the sections."""
    objective: Any = stage.objective
    losses: list[Tensor] = []
    outputs: list[Tensor] = []
    for number, unit in enumerate(stage.body, start=1):
        x = unit(x)
        if number in objective.watches:
            head = objective.heads[len(losses)].head
            losses.append(F.cross_entropy(head(x), LABELS))
            outputs.append(x)
    return [*losses, F.cross_entropy(stage.head(x), LABELS)], outputs


def test_deep_supervision_is_the_gradient_of_the_sum() -> None:
    """So the first stage's is greedy training's and that of later losses, pulled back: the leak."""
    stage = deep()
    with seeded(0, "x"):
        x = torch.randn(5, 1, 8, 8).double()
    stage.forward(x)
    stage.output_gradient(LABELS)
    stage.reconcile(None)
    losses, outputs = by_hand(stage, x)
    assert len(losses) == 4
    parameters = [p for module in stage.modules for p in module.parameters()]
    expected = torch.autograd.grad(torch.stack(losses).sum(), parameters, retain_graph=True)
    for parameter, wanted in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, wanted, rtol=1e-10, atol=1e-14)
    metrics = stage.metrics(LABELS)
    assert torch.allclose(metrics.loss, losses[-1])
    (own,) = torch.autograd.grad(losses[0], outputs[0], retain_graph=True)
    later = torch.stack(losses[1:]).sum()
    (rest,) = torch.autograd.grad(later, outputs[0], retain_graph=True)
    assert torch.allclose(metrics.figures["leak"], rest.norm() / (own + rest).norm())

    first = list(stage.body[0].parameters())
    alone = torch.autograd.grad(losses[0], first, retain_graph=True)
    pulled = torch.autograd.grad(outputs[0], first, rest)
    for parameter, greedy, leaked in zip(first, alone, pulled, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad - greedy, leaked, rtol=1e-9, atol=1e-14)
        assert leaked.abs().sum() > 0


def test_with_one_stage_it_is_back_propagation() -> None:
    stage = deep(stages=1)
    assert stage.figure_names == ()
    x = torch.ones(5, 1, 8, 8).double()
    stage.forward(x)
    stage.output_gradient(LABELS)
    stage.reconcile(None)
    (loss,), _ = by_hand(stage, x)
    parameters = [*stage.body.parameters(), *stage.head.parameters()]
    for parameter, wanted in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, wanted, rtol=1e-10, atol=1e-14)


def test_the_leak_stays_as_it_was_measured_where_a_run_goes_on() -> None:
    x = torch.ones(5, 1, 8, 8).double()
    stage, fresh = deep(), deep()
    first = stage.step(x, LABELS).metrics.figures["leak"]
    fresh.objective.load_state_dict(stage.state_dict()["objective"])  # type: ignore[attr-defined]
    fresh.steps = stage.steps
    for each in (stage, fresh):
        assert torch.equal(each.step(x, LABELS).metrics.figures["leak"], first)


def same_model(one: Path, two: Path) -> bool:
    first, second = (load(str(run)).state_dict() for run in (one, two))
    return all(torch.equal(first[name], second[name]) for name in first | second)


def test_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not strict it is greedy, and strict it is not; ranks change nothing."""
    steps = ["--model", "mlp", "--stages", "3", "--max-steps", "6", "--snapshot-every", "2"]
    greedy = train_alone([*steps, "--objective", "greedy"], tmp_path / "greedy")
    method = [*steps, "--objective", "bwbpf"]
    loose = ["--objective-options", "strict=false"]
    assert same_model(train_alone([*method, *loose], tmp_path / "loose"), greedy)
    strict = train_alone(method, tmp_path / "strict")
    assert not same_model(strict, greedy)
    out = tmp_path / "ranks"
    train_until(3, method, out, monkeypatch)
    run_ranks(tmp_path / "log", ["train", *method, "--out", str(out)], 3)
    assert_same_bits(strict, out)
    summary = json.loads((out / "summary.json").read_text())
    assert "local loss" in summary["stages"][-1]["figures"]["train"]


def test_a_run_of_deep_supervision_says_its_leak(tmp_path: Path) -> None:
    arguments = ["--model", "mlp", "--stages", "3", "--max-steps", "6", "--snapshot-every", "3"]
    arguments += ["--objective", "deep-supervision"]
    plain = train_alone(arguments, tmp_path / "plain")
    (stage,) = json.loads((plain / "summary.json").read_text())["stages"]
    figures = stage["figures"]["train"]
    assert {"loss of head 1", "loss of head 2", "leak"} <= figures.keys()
    assert figures["leak"] > 0
    further = ["--checkpoint-activations", "1", "--step-early"]
    assert same_model(train_alone([*arguments, *further], tmp_path / "sparing"), plain)
