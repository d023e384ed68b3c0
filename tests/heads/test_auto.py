"""The head chosen by the model's own structure, within a budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pipelocal as pl
from pipelocal import cli
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.data import DataInfo
from pipelocal.models import MODELS
from pipelocal.partition.analysed import Roofline
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.costs import cost_model
from pipelocal.system.tensor_kind import TensorKind
from tests import skipping_models
from tests.heads.test_downstream import BYTES, CPU, IMAGES, LANGUAGE
from tests.interrupted import EVERY, train_until
from tests.models import of_several_tensors, user_models
from tests.test_transparency import assert_same_bits, train_alone

LARGE = DataInfo(name="images", sample_shape=(3, 32, 32), classes=10)


def of(
    model: str, cut: str, *, budget: float = 1.0, info: DataInfo = IMAGES, **options: object
) -> Blueprint:
    given = {"model": model, "cut": cut, "head": "auto", "head_budget": budget}
    config = TrainConfig(**given | {"objective": "greedy"} | options)  # type: ignore[arg-type]
    return blueprint_of(config, info=info)


def heads_of(blueprint: Blueprint) -> list[str]:
    names = [blueprint.head_name(number + 1) for number in range(blueprint.stages)]
    assert names.pop() is None
    return [name for name in names if name is not None]


@pytest.mark.parametrize(
    ("model", "cut", "budget", "heads"),
    [
        # Up to three units, in six tenths of the budget.
        ("resnet20", "3,2,2,3", 1, ["twin=3"] * 3),
        ("resnet20", "3,2,2,3", 0.5, ["twin=2", "twin=2", "twin=2"]),
        ("gpt", "3,2,2", 1, ["twin=2", "twin=2"]),
        ("vit_small", "2,2,2,2", 1, ["twin=3", "twin=3", "twin=2"]),
        ("lstm", "2,3", 1, ["twin=1"]),
        ("mlp", "3,3", 1, ["twin=3"]),
        # As few as change the shape, in all of it.
        ("resnet8", "1,1,1,1", 1, ["twin=2", "twin=2", "twin=1"]),
        # Two strided blocks are more than that: rows on maps of half the side, then of a quarter.
        ("resnet20", "3,2,2,3", 0.2, ["twin=3@2", "twin=1", "twin=1"]),
        ("resnet20", "3,2,2,3", 0.1, ["twin=3@2", "twin=2@2", "twin=2@2"]),
        ("resnet20", "3,2,2,3", 0.03, ["twin=3@4", "twin=1@2", "twin=1@2"]),
        ("resnet20", "3,2,2,3", 0.005, ["mlp"] * 3),
        # Maps of one pixel before the classifier cannot be made coarser.
        ("resnet18", "3,2,2,2", 0.1, ["conv", "conv", "mlp"]),
        # The model's own norm and readout; the cheapest where nothing is within.
        ("gpt", "3,2,2", 0.2, ["twin=0"] * 2),
        ("gpt", "3,2,2", 1e-9, ["twin=0"] * 2),
        ("resnet20", "3,2,2,3", 1e-9, ["linear"] * 3),
    ],
)
def test_what_is_chosen(model: str, cut: str, budget: float, heads: list[str]) -> None:
    info = BYTES if model in LANGUAGE else LARGE
    assert heads_of(of(model, cut, budget=budget, info=info)) == heads


def test_a_head_keeps_its_form_where_the_cut_moves_and_is_the_one_of_its_name() -> None:
    """By the number of stages alone; weights are drawn as those of the head that is named."""
    blueprint = of("resnet20", "3,2,2,3")
    assert blueprint.head_name(1) == of("resnet20", "1,2,2,5").head_name(2) == "twin=3"
    assert of("resnet20", "1,1,1,1,1,1,1,1,1,1").head_name(3) == "twin=3"
    assert of("resnet20", "1,1,1,1,1,1,1,1,1,1", budget=0.1).head_name(3) == "twin=3@2"
    chosen = blueprint.build_stage(1, device=CPU, total_steps=1).head
    named = of("resnet20", "3,2,2,3", head="twin=3")
    for name, value in named.build_stage(1, device=CPU, total_steps=1).head.state_dict().items():
        assert torch.equal(value, chosen.state_dict()[name])


def trains(
    blueprint: Blueprint, x: Tensor, target: Tensor, *, beside: Sequence[Tensor] = ()
) -> None:
    """The first stage takes a step, which changes its head."""
    stage = blueprint.build_stage(1, device=CPU, total_steps=1)
    before = [parameter.clone() for parameter in stage.head.parameters()]
    stage.step(x, target, beside=beside)
    moved = zip(before, stage.head.parameters(), strict=True)
    assert any(torch.isfinite(new).all() and not torch.equal(old, new) for old, new in moved)


FAST = ("mlp", "allconv", "resnet8", "gpt")


@pytest.mark.parametrize(
    "model", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_every_ready_model_trains_with_it(model: str) -> None:
    """And is planned with it, on the meta device."""
    language = model in LANGUAGE
    info = BYTES if language else IMAGES
    config = TrainConfig(model=model, head="auto", objective="greedy", stages=2)
    blueprint = blueprint_of(config, info=info)
    x = torch.randint(7, (2, 16)) if language else torch.randn(2, 3, 32, 32)
    trains(blueprint, x, torch.randint(5, (2, 16) if language else (2,)))
    roofline = Roofline(flops=1e12, memory_bytes_per_s=1e12)
    costs = cost_model(blueprint, config, roofline, batch_size=2)
    assert all(head.parameter_bytes > 0 for head in costs.profile.heads)


@pytest.mark.parametrize("model", ["unet", "float16", "bfloat16", "sequential", "chain"])
def test_models_of_ones_own_train_with_it(model: str, tmp_path: Path) -> None:
    """Several tensors cross a cut, or the units work in half precision, which no head does."""
    file = skipping_models if hasattr(skipping_models, model) else user_models
    arguments = ["--model", f"{file.__file__}:{model}", "--head", "auto", "--objective", "greedy"]
    out = train_alone([*arguments, "--stages", "2", "--max-steps", "2"], tmp_path / "run")
    assert cli.run(["evaluate", str(out)]) == 0
    assert cli.run(["export", str(out), "--to", str(tmp_path / "model.pt")]) == 0


@pytest.mark.parametrize(("budget", "head"), [(3.0, "twin=2"), (1.0, "twin=1"), (0.01, "twin=0")])
def test_a_mask_beside_the_tokens(budget: float, head: str) -> None:
    tokens = TensorKind(name="attention_mask", shape=(9,), dtype=torch.int64)
    info = DataInfo(
        name="own", sample_shape=(9,), classes=5, sample_dtype=torch.int64, beside=(tokens,)
    )
    blueprint = of(f"{of_several_tensors.__file__}:encoder", "layers.1", budget=budget, info=info)
    assert heads_of(blueprint) == [head]
    mask = torch.ones(2, 9, dtype=torch.int64)
    trains(blueprint, torch.zeros(2, 9, dtype=torch.int64), torch.tensor([0, 4]), beside=[mask])


class Once(nn.Module):
    """Takes a mask, but only as the unit that it is: a copy finds what it wants gone."""

    def forward(self, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, mask = given
        if bool((mask == 0).all()):
            return x, mask
        raise RuntimeError("not here")


def test_a_row_that_fails_on_several_tensors_is_passed_over(tmp_path: Path) -> None:
    """What is tried with zeros works, and the head's trial with ones does not."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.linear(x), torch.zeros(len(x), 1, dtype=torch.int64)

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
            out: Tensor = self.linear(given[0])
            return out

    net = nn.Sequential(Both(), Once(), Read())
    pipe = pl.Pipeline(net, stages=2, head="auto", objective=pl.Greedy())
    pipe.step(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))


def test_bp_free_takes_the_head_with_a_closed_form(tmp_path: Path) -> None:
    arguments = ["--model", "mlp", "--bp-free", "--stages", "6", "--objective", "greedy"]
    auto, linear = (
        train_alone([*arguments, "--head", head, "--max-steps", "2"], tmp_path / head)
        for head in ("auto", "linear")
    )
    assert_same_bits(auto, linear)


def test_a_stage_that_is_never_trained(tmp_path: Path) -> None:
    arguments = ["--head", "auto", "--freeze-stage", "1:0", "--objective", "greedy"]
    out = train_alone([*arguments, "--stages", "3", "--max-steps", "2"], tmp_path / "run")
    stages = json.loads((out / "summary.json").read_text())["stages"]
    assert [stage["head"] for stage in stages] == ["twin=2", "twin=1", None]
    assert cli.run(["evaluate", str(out)]) == 0


def test_other_stages_begin_the_heads_anew_that_get_another_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind layer3 a stage in two has a shorter head than one in six; the body goes on."""
    out = tmp_path / "run"
    base = ["--model", "mlp", "--head", "auto", "--head-budget", "1", "--objective", "greedy"]
    base += ["--epochs", "1", *EVERY]
    train_until(15, [*base, "--stages", "6"], out, monkeypatch)
    train_alone([*base, "--stages", "2"], out)
    said = capsys.readouterr().err
    assert "heads that begin anew: behind layer3; heads that have no place any more: " in said


def test_a_budget_is_for_auto_alone(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--head", "conv", "--head-budget", "0.5"]
    assert cli.run(arguments) == cli.USER_ERROR
    assert "--head-budget 0.5 is for --head auto, not conv" in capsys.readouterr().err
    assert cli.run(["plan", "--head", "auto", "--head-budget", "0"]) == cli.USER_ERROR
    assert "--head-budget 0.0: give a number above 0" in capsys.readouterr().err
