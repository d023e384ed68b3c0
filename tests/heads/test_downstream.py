"""The head that is shaped like what follows the cut."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipelocal import cli
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.config.training import train
from pipelocal.data import DataInfo
from pipelocal.errors import UserError
from pipelocal.heads import HEADS, HeadBuilder, build_head, downstream
from pipelocal.models import MODELS
from pipelocal.partition.measured import Stopwatch
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.costs import cost_model
from pipelocal.stage.stage import Stage
from pipelocal.system.tensor_kind import TensorKind
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, train_alone

CPU = torch.device("cpu")
IMAGES = DataInfo(name="images", sample_shape=(3, 32, 32), classes=5)
BYTES = DataInfo(
    name="bytes", sample_shape=(16,), classes=7, target_shape=(16,), sample_dtype=torch.int64
)
LANGUAGE = ("gpt", "gpt-math", "lstm", "gru")


def a_blueprint(model: str, stages: int = 1) -> Blueprint:
    info = BYTES if model in LANGUAGE else IMAGES
    config = TrainConfig(model=model, head="downstream", stages=stages, objective="greedy")
    return blueprint_of(config, info=info)


def names_behind(model: str, unit: str) -> list[str]:
    """What a head behind the unit of this name is made of."""
    blueprint = a_blueprint(model)
    stop = [u.name for u in blueprint.chain.units].index(unit) + 1
    with torch.device("meta"):
        head = blueprint.heads.build(stop)
    return [name for name, _ in head.named_children()]


@pytest.mark.parametrize(
    ("model", "unit", "expected"),
    [
        ("resnet20", "stem", ["block4", "block7", "classifier"]),
        ("resnet20", "block3", ["block4", "block7", "classifier"]),
        ("resnet20", "block6", ["block7", "classifier"]),
        ("resnet20", "block8", ["block9", "classifier"]),
        ("gpt", "block2", ["block3", "classifier"]),
        ("lstm", "embed", ["layer1", "classifier"]),
        ("resnet18", "stem", ["layer2/0", "layer3/0", "layer4/0", "classifier"]),
    ],
)
def test_what_it_is_made_of(model: str, unit: str, expected: list[str]) -> None:
    blueprint = a_blueprint(model)
    names = names_behind(model, unit)
    assert names[:-1] == expected[:-1]
    assert names[-1] == blueprint.chain.classifier.name


@pytest.mark.parametrize(
    "model", [n if n == "resnet20" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_every_ready_model_trains_with_it_behind_every_unit(model: str) -> None:
    """In two stages, wherever the cut: the loss is finite and every parameter gets a gradient.

    The head's input stays as it is, and it is smaller than what follows where units are left out.
    """
    torch.manual_seed(0)
    units = len(a_blueprint(model).chain.units)
    stops = range(1, units) if units < 12 else (1, units // 2, units - 1)
    for stop in stops:
        config = TrainConfig(
            model=model, head="downstream", cut=f"{stop},{units - stop}", objective="greedy"
        )
        blueprint = blueprint_of(config, info=BYTES if model in LANGUAGE else IMAGES)
        stage = blueprint.build_stage(1, device=CPU, total_steps=1)
        x = torch.randn(2, 3, 32, 32)
        target = torch.randint(5, (2,))
        if model in LANGUAGE:
            x, target = torch.randint(7, (2, 16)), torch.randint(7, (2, 16))
        gradients = gradients_of(stage, x, target)
        assert all(gradient is not None for gradient in gradients)
        follows = [*blueprint.chain.units[stop:], blueprint.chain.classifier]
        with torch.device("meta"):
            rest = sum(parameters_in(unit.build()) for unit in follows)
        if len(stage.head) < len(follows):  # type: ignore[arg-type]
            assert parameters_in(stage.head) < rest
        else:
            assert parameters_in(stage.head) == rest


def parameters_in(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def gradients_of(stage: Stage, x: Tensor, target: Tensor) -> list[Tensor | None]:
    out = stage.forward(x)
    before = out.clone()
    stage.output_gradient(target)
    assert torch.equal(out, before)
    stage.reconcile(None)
    assert torch.isfinite(stage.metrics(target).loss)
    gradients = [parameter.grad for parameter in stage.head.parameters()]
    out, logits = stage.evaluate(x)
    before = out.clone()
    with torch.no_grad():
        assert torch.equal(stage.head(out), logits)
    assert torch.equal(out, before)
    assert logits.shape[:-1] == target.shape
    return gradients


def test_its_parameters_depend_on_the_seed_and_the_cut_and_are_not_the_model_s() -> None:
    def head(seed: int, cut: str, number: int) -> nn.Module:
        config = TrainConfig(
            model="resnet8", head="downstream", cut=cut, objective="greedy", seed=seed
        )
        blueprint = blueprint_of(config, info=IMAGES)
        return blueprint.build_stage(number, device=CPU, total_steps=1).head

    one, again, later, other = (
        list(head(*which).state_dict().values())
        for which in ((0, "2,2", 1), (0, "2,2", 1), (0, "1,1,2", 2), (1, "2,2", 1))
    )
    for same in (again, later):
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    own = blueprint_of(TrainConfig(model="resnet8"), info=IMAGES).chain.build(2, 4, seed=0)
    drawn = [value for value in one if value.dim() == 4]
    theirs = [value for value in own.state_dict().values() if value.dim() == 4]
    assert not any(torch.equal(a, b) for a in drawn for b in theirs if a.shape == b.shape)


def test_like_heads_are_costed_once() -> None:
    """Behind each block of gpt it is another block and the classifier, of the same make."""

    class Counting(Stopwatch):
        passes = 0

        def seconds_of_pass(self, *arguments: Any, **options: Any) -> tuple[float, float]:
            Counting.passes += 1
            return super().seconds_of_pass(*arguments, **options)

    config = TrainConfig(model="gpt", head="downstream", objective="greedy", batch_size=2)
    blueprint = blueprint_of(config, info=BYTES)
    cost_model(blueprint, config, Counting(device=CPU, repeats=1), batch_size=config.batch_size)
    # With and without the gradient at the input, but for the embedding, which takes none.
    assert Counting.passes == 1 + 2 * len(["block", "block and classifier", "classifier"])


def test_sgr_refuses_a_head_that_cannot_be_differentiated_twice(tmp_path: Path) -> None:
    """Behind the second unit it is the attention that follows."""
    models = Path(__file__).parents[1] / "models_for_tests.py"
    config = TrainConfig(
        model=f"{models}:attention",
        head="downstream",
        cut="1,1,1,1",
        objective="sgr",
        reconcile="exact",
        out=str(tmp_path / "run"),
        max_steps=1,
    )
    with pytest.raises(
        UserError, match=r"^stage 2: the head cannot .* or another --head"
    ) as caught:
        train(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("head", "objective"), [("auto", "greedy"), ("downstream@2", "sgr")])
def test_two_ranks_equal_one_process_and_evaluate_finds_the_head(
    tmp_path: Path, head: str, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--head", head, "--objective", objective, "--stages", "4"]
    arguments += ["--max-steps", "8"]
    alone = train_alone(arguments, tmp_path / "alone")
    out = tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *arguments, "--out", str(out)], 2)
    assert_same_bits(alone, out)
    capsys.readouterr()
    assert cli.run(["evaluate", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    summary = json.loads((out / "summary.json").read_text())
    assert result["ensemble_accuracy"] == summary["ensemble_accuracy"]


def test_the_plan_counts_it(capsys: pytest.CaptureFixture[str]) -> None:
    """It is heavier than a linear one, which the plan shows."""

    def plan(head: str) -> list[dict[str, float]]:
        arguments = ["plan", "--model", "resnet20", "--device", "meta", "--objective", "greedy"]
        assert cli.run([*arguments, "--head", head, "--json", "--cut", "2,3,5"]) == 0
        stages: list[dict[str, float]] = json.loads(capsys.readouterr().out)["stages"]
        return stages

    for heavy, light in zip(plan("downstream")[:-1], plan("linear")[:-1], strict=True):
        assert heavy["head_fraction"] > light["head_fraction"]
        assert heavy["parameters"] > light["parameters"]
        assert heavy["memory_bytes"] > light["memory_bytes"]


@pytest.mark.parametrize("model", ["resnet8", "gpt"])
def test_a_twin_starts_with_the_real_units_weights(model: str) -> None:
    """Bit for bit, classifier and running statistics included, whatever the depth."""
    info = BYTES if model in LANGUAGE else IMAGES
    for head in ("twin", "twin=2:next", "twin=all"):
        config = TrainConfig(model=model, head=head, cut="1,1,2" if model == "resnet8" else "3,4")
        blueprint = blueprint_of(config, info=info)
        whole = blueprint.chain.build_whole(seed=config.seed).state_dict()
        made = blueprint.build_stage(1, device=CPU, total_steps=1).head.state_dict()
        assert made
        for name, value in made.items():
            assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize(
    ("name", "depth"),
    [("downstream", 1), ("downstream=0", 0), ("twin=3", 3), ("twin=all", 4), ("downstream=99", 4)],
)
def test_a_depth_behind_its_name(name: str, depth: int) -> None:
    """Before a gpt's classifier, which takes what every unit makes; more than there are is all."""
    blueprint = blueprint_of(TrainConfig(model="gpt", head=name, cut="3,4"), info=BYTES)
    head = blueprint.heads.build(3)
    assert [*dict(head.named_children())][-1] == "classifier"
    assert len([*head.children()]) == depth + 1


def test_rules_take_the_last_or_the_next_block() -> None:
    def made_of(head: HeadBuilder) -> list[str]:
        blueprint = blueprint_of(TrainConfig(model="gpt", cut="3,4"), info=BYTES)
        recipe = replace(blueprint.recipe, head=head)
        return [
            name for name, _ in replace(blueprint, recipe=recipe).heads.build(3).named_children()
        ]

    assert made_of(HEADS.get("downstream=1")) == ["block6", "classifier"]
    assert made_of(HEADS.get("downstream=1:next")) == ["block3", "classifier"]
    assert made_of(partial(downstream, depth=2, rule="next", twin=True))[:2] == ["block3", "block4"]


def resnet_head(stage: int, head: str) -> nn.Module:
    blueprint = blueprint_of(TrainConfig(model="resnet20", head=head, cut="3,3,2,2"), info=IMAGES)
    return blueprint.build_stage(stage, device=CPU, total_steps=1).head


@pytest.mark.parametrize(("stage", "made"), [(1, [16, 32, 32]), (2, [32, 16, 16]), (3, [64, 8, 8])])
@pytest.mark.parametrize("square", [2, 3, 9])
def test_a_square_averages_the_map_for_the_same_copies(
    stage: int, made: list[int], square: int
) -> None:
    """Outputs and gradients are those of the head without it on the map of means.

    A square at the border is of what there is; a square may be larger than the map.
    """
    coarse, plain = resnet_head(stage, f"twin@{square}"), resnet_head(stage, "twin")
    x = torch.randn(4, *made, requires_grad=True)
    rows = [
        torch.stack(
            [
                x[..., i : i + square, j : j + square].mean((-2, -1))
                for j in range(0, made[-1], square)
            ],
            -1,
        )
        for i in range(0, made[-1], square)
    ]
    ours, theirs = coarse(x), plain(torch.stack(rows, -2))
    torch.testing.assert_close(ours, theirs)
    (of_ours,), (of_theirs,) = (torch.autograd.grad(y.square().sum(), x) for y in (ours, theirs))
    torch.testing.assert_close(of_ours, of_theirs, rtol=1e-4, atol=1e-6)


def test_a_square_makes_a_head_cheaper_by_its_pixels() -> None:
    """In a convolution, which counts as many products for each pixel of its output."""
    x = torch.randn(1, 16, 32, 32)

    def products(head: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter:
            head(x)
        return int(counter.get_total_flops())

    assert products(resnet_head(1, "twin")) == pytest.approx(
        16 * products(resnet_head(1, "twin@4")), rel=0.01
    )


def test_a_square_is_refused_where_a_map_must_stay_whole() -> None:
    tokens = TrainConfig(model="gpt", head="twin@2", cut="3,4")
    with pytest.raises(
        UserError, match=r"square 2, but this stage makes \[16, \d+\], which is no map"
    ):
        blueprint_of(tokens, info=BYTES).build_stage(1, device=CPU, total_steps=1)
    behind = a_blueprint("resnet20").heads.behind(4).downstream
    build = partial(build_head, HEADS.get("twin@2"), (16, 32, 32), classes=5)
    with pytest.raises(UserError, match="wants an answer for every pixel: leave @2 out"):
        build(target_shape=(32, 32), downstream=behind)
    mask = TensorKind(name="mask", shape=(32, 32), dtype=torch.bool)
    crossing = ((*behind.crossing[0], mask), *behind.crossing[1:])
    with pytest.raises(UserError, match="beside the map the cut passes on mask: leave @2 out"):
        build(target_shape=(), downstream=replace(behind, crossing=crossing))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("downstream=x", "head 'downstream=x': depth 'x': give a whole number of units"),
        ("twin=", "head 'twin=': depth '': give"),
        ("twin=-1", "depth '-1': give"),
        ("downstream=2:last", "rule 'last': choose one of even, next"),
        ("downstream=2:", "rule '': choose one of"),
        ("twin@1", "head 'twin@1': square 1: give a whole number of pixels of at least 2"),
        ("twin=2@", "square '': give"),
        ("twin=2@next", "square 'next': give"),
        ("conv@2", "head 'conv@2': a square is for downstream, twin and guided alone: give conv"),
        (
            "linear=2",
            "head 'linear=2': a depth is for downstream, twin and guided alone: give linear",
        ),
        ("dwnstream=2", "unknown head 'dwnstream=2': choose one of .* did you mean 'downstream'"),
    ],
)
def test_a_name_that_is_refused(name: str, said: str) -> None:
    for ask in (HEADS.check, HEADS.get, HEADS.later):
        with pytest.raises(UserError, match=said):
            ask(name)


def test_the_classifier_alone_is_refused_where_it_does_not_fit() -> None:
    config = TrainConfig(model="resnet8", head="downstream=0", cut="1,3", objective="greedy")
    with pytest.raises(
        UserError, match=r"alone, which takes \[64, 8, 8\], .* makes \[16, 32, 32\]"
    ):
        blueprint_of(config, info=IMAGES).build_stage(1, device=CPU, total_steps=1)


def test_a_partial_is_called_as_its_head() -> None:
    assert HEADS.name_of(HEADS.get("twin=2:next")) == "twin=2:next"
    assert HEADS.name_of(HEADS.get("twin")) == "twin"
    assert HEADS.name_of(HEADS.get("twin=2:next@2")) == "twin=2:next@2"
    assert HEADS.name_of(partial(downstream, depth=2)) == "downstream"
    assert "twin=2:next" in HEADS
    assert "twins" not in HEADS
