"""Heads with random weights that stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelocal import cli
from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.errors import UserError
from pipelocal.heads.build import HEADS, build_head
from tests.test_transparency import train_alone


@pytest.mark.parametrize("feature_shape", [(6,), (6, 5, 4), (6, 5)])
def test_logits_shape_and_no_parameters(feature_shape: tuple[int, ...]) -> None:
    head = HEADS.get("linear-fixed")(feature_shape, 10)
    assert head(torch.randn(3, *feature_shape)).shape == (3, 10)
    assert not list(head.parameters())
    assert list(head.state_dict()) == ["weight"]


def test_it_is_the_mean_and_a_linear_map() -> None:
    head = HEADS.get("linear-fixed")((6, 5, 4), 3)
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(head(x), x.mean((2, 3)) @ head.state_dict()["weight"].T)


def test_tokens_are_averaged_and_normalised() -> None:
    head = HEADS.get("linear-fixed")((5, 6), 3)
    x = torch.randn(2, 5, 6)
    mean = x.mean(1)
    normal = (mean - mean.mean(1, keepdim=True)) / (
        mean.var(1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(head(x), normal @ head.state_dict()["weight"].T)


def test_logits_are_about_as_large_as_features() -> None:
    torch.manual_seed(0)
    head = HEADS.get("linear-fixed")((512,), 100)
    assert 0.9 < float(head(torch.randn(64, 512)).std()) < 1.1


def test_a_label_for_each_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"'linear-fixed' makes .* choose --head linear"):
        build_head(HEADS.get("linear-fixed"), (5, 6), classes=3, target_shape=(5,))


def test_a_stage_with_nothing_else_to_train_is_refused() -> None:
    config = TrainConfig(
        model=f"{Path(__file__).parents[1] / 'models_for_tests.py'}:identity",
        head="linear-fixed",
        stages=4,
    )
    blueprint = blueprint_of(config)
    with pytest.raises(UserError, match=r"stage 2 \(u2\) has no parameters to train"):
        blueprint.build_stage(2, device=torch.device("cpu"), total_steps=1)


@pytest.mark.parametrize("options", [[], ["--bp-free"]])
def test_it_trains_and_evaluates_and_the_weights_stay(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "mlp", "--stages", "6", "--head", "linear-fixed", *options]
    runs = [
        train_alone([*arguments, "--max-steps", str(steps)], tmp_path / f"run-{steps}")
        for steps in (1, 40)
    ]
    early, late = (torch.load(run / "stages/stage-1.pt", weights_only=True) for run in runs)
    assert torch.equal(early["head"]["weight"], late["head"]["weight"])
    assert not torch.equal(early["body"]["layer1.1.weight"], late["body"]["layer1.1.weight"])
    capsys.readouterr()
    assert cli.run(["evaluate", str(runs[1]), "--json"]) == 0
    summary = json.loads((runs[1] / "summary.json").read_text())
    assert json.loads(capsys.readouterr().out)["eval_accuracy"] == summary["eval_accuracy"]
    assert summary["stages"][0]["eval_accuracy"] > 0.7
    assert cli.run(["export", str(runs[1]), "--to", str(tmp_path / "model.pt")]) == 0


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_planner_counts_no_gradient_of_it(
    device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for head in ("linear", "linear-fixed"):
        arguments = ["plan", "--model", "mlp", "--stages", "6", "--device", device, "--json"]
        assert cli.run([*arguments, "--head", head]) == 0
        found[head] = json.loads(capsys.readouterr().out)
    with_, without = (found[head]["stages"][0] for head in ("linear", "linear-fixed"))
    weights, bias = 256 * 10, 10
    assert with_["parameters"] - without["parameters"] == weights + bias
    # The weights are there all the same; their gradients and momentum are not, nor the bias.
    if device == "meta":
        assert with_["memory_bytes"] - without["memory_bytes"] >= 4 * (2 * weights + 3 * bias)
