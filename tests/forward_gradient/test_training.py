"""Training by forward gradients: no backward pass, the same bits over ranks, or why not in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import pipelocal
from pipelocal import cli
from pipelocal.errors import UserError
from pipelocal.forward_gradient import ForwardGradientStage
from pipelocal.models import MODELS, local_mixer
from pipelocal.objective import LGFG
from pipelocal.objective.lg_fg import ForwardGradient
from pipelocal.seeding import seeded
from tests.interrupted import train_until
from tests.launching import launch
from tests.objective.stages import gradients, make_stage, same_bits, weights
from tests.test_forward_only import record_transfers
from tests.test_transparency import assert_same_bits, train_alone

MIXER = ["--model", "tests.forward_gradient.models:mixer", "--objective", "lg-fg"]


def make(options: LGFG, stage: int = 2) -> tuple[ForwardGradientStage, Tensor, Tensor]:
    """A stage of a small LocalMixer, with a batch, in float64."""
    chain = local_mixer((1, 8, 8), 3, blocks=2, side=2, groups=2, width=8)
    body = chain.build(stage - 1, stage, seed=0).double()
    head = chain.build_classifier(seed=0).double()
    with seeded(0, "batch"):
        x = torch.randn(*((5, 4, 8) if stage > 1 else (5, 1, 8, 8))).double()
    made = ForwardGradientStage(
        number=stage,
        body=body,
        head=head,
        objective=ForwardGradient(options),
        optimizer=torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1),
    )
    return made, x, torch.tensor([0, 2, 1, 1, 0])


@contextmanager
def no_backward(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails where autograd runs backward, or keeps anything for that."""

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a backward pass")

    with (
        monkeypatch.context() as patch,
        saved_tensors_hooks(refuse, lambda tensor: tensor),
    ):
        patch.setattr(torch.autograd, "backward", refuse)
        patch.setattr(torch.autograd, "grad", refuse)
        patch.setattr(Tensor, "backward", refuse)
        patch.setattr(torch.autograd.graph, "_engine_run_backward", refuse)
        yield


@pytest.mark.parametrize("perturb", ["activity", "weight"])
@pytest.mark.parametrize("stage", [1, 2])
def test_no_backward_pass(perturb: str, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x, target = make(LGFG(perturb=perturb, passes=2), stage)  # type: ignore[arg-type]
    before = weights(made)
    with no_backward(monkeypatch):
        result = made.step(x, target)
        layer = nn.Linear(8, 3).double()
        with pytest.raises(AssertionError, match="a backward pass"):
            layer(x.flatten(1)[:, :8]).sum().backward()
    after = weights(made)
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert not result.output.requires_grad
    assert made._body_run is None


def test_head_and_body_are_trained_as_they_would_be_by_autograd() -> None:
    """The head exactly; the body in the direction of its gradient."""
    made, x, target = make(LGFG(noise="rademacher", passes=100))
    chain = local_mixer((1, 8, 8), 3, blocks=2, side=2, groups=2, width=8)
    body, head = chain.build(1, 2, seed=0).double(), chain.build_classifier(seed=0).double()
    greedy = make_stage(body, head)
    for stage in (made, greedy):
        stage.forward(x)
        stage.output_gradient(target)
        stage.reconcile(None)
    ours, expected = gradients(made), gradients(greedy)
    for name in (name for name in expected if name.startswith("head")):
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-11, atol=1e-14)
    one, two = (
        torch.cat([gradient.flatten() for name, gradient in found.items() if "body" in name])
        for found in (ours, expected)
    )
    assert torch.cosine_similarity(one, two, 0) > 0.6
    torch.testing.assert_close(made.metrics(target).loss, greedy.metrics(target).loss)


def test_a_step_is_repeatable_and_the_next_has_other_noise() -> None:
    ends = []
    for _ in range(2):
        made, x, target = make(LGFG())
        made.forward(x)
        made.output_gradient(target)
        assert made.kept_bytes > 0
        made.reconcile(None)
        made.update()
        made.step(x, target)
        ends.append(weights(made))
    assert same_bits(*ends)
    assert not torch.equal(*(each["body.block2.0.5.weight"] for each in noises()))


def noises() -> list[dict[str, Tensor]]:
    """Gradients of the same stage and batch at two steps."""
    found = []
    for step in range(2):
        made, x, target = make(LGFG())
        made.steps = step
        made.forward(x)
        made.output_gradient(target)
        made.reconcile(None)
        found.append(gradients(made))
    return found


def test_parameters_are_counted_as_in_the_paper() -> None:
    """With a head for each block and a readout: 272K and 919K."""
    for name, shape, head, count in (
        ("local-mixer-s-1-1", (1, 28, 28), 2_570, 271_892),
        ("local-mixer", (3, 32, 32), 5_130, 918_770),
    ):
        chain = MODELS.get(name)(shape, 10)
        with torch.device("meta"):
            whole = chain.build_whole(seed=0)
        assert sum(p.numel() for p in whole.parameters()) + len(chain.units) * head == count


def test_over_ranks_it_equals_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it goes on from a snapshot; and no byte moves backward."""
    arguments = [*MIXER, "--max-steps", "8", "--lr", "0.02", "--snapshot-every", "3"]
    alone = train_alone(arguments, tmp_path / "alone")
    out = tmp_path / "ranks"
    train_until(5, arguments, out, monkeypatch)
    ranks = launch(
        tmp_path / "log",
        ["train", *arguments, "--out", str(out)],
        4,
        lambda rank: record_transfers(rank, tmp_path),
    )
    assert ranks.wait() == [0] * 4, ranks.output()
    assert_same_bits(alone, out)
    for rank in range(4):
        lines = (tmp_path / f"transfers-{rank}.jsonl").read_text().splitlines()
        for each in map(json.loads, lines):
            sent = each["function"] == "send"
            assert sent or each["function"] == "recv"
            assert each["peer"] == (rank + 1 if sent else rank - 1)


def test_it_learns(tmp_path: Path) -> None:
    arguments = ["--model", "tests.forward_gradient.models:dense", "--objective", "lg-fg"]
    arguments += ["--stages", "2", "--epochs", "2", "--lr", "0.2", "--weight-decay", "0"]
    run = train_alone(arguments, tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["eval_accuracy"] > 0.6


def test_from_python_with_heads_of_its_own() -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.LayerNorm(24), nn.ReLU()),
        nn.Sequential(nn.Linear(24, 16), nn.Tanh()),
        nn.Linear(16, 3),
    )
    pipe = pipelocal.Pipeline(net, stages=2, objective=pipelocal.objectives.LGFG(passes=2))
    x, target = torch.randn(8, 1, 8, 8), torch.randint(3, (8,))
    losses = [pipe.step(x, target)["loss"] for _ in range(3)]
    assert all(loss > 0 for loss in losses)


ERRORS = {
    "batch norm": (
        ["--model", "mlp", "--stages", "2"],
        "stage 1: unit 'layer1' has BatchNorm1d, by which each sample's loss depends on the noise of all "
        "others: for --objective lg-fg take LayerNorm, as --model local-mixer does",
    ),
    "no formula": (
        ["--model", "tests.forward_gradient.models:gelu", "--stages", "1"],
        "stage 1: unit '0' has what --objective lg-fg has no formula for (GELU): it can do Linear, ",
    ),
    "a head without one": (
        [*MIXER, "--head", "mlp"],
        "stage 1: head 'mlp' has what --objective lg-fg has no formula for (",
    ),
    "compiled": (
        [*MIXER, "--compile", "eager"],
        "--compile is for stages that run as modules: leave out --objective lg-fg or --compile",
    ),
    "early steps": (
        [*MIXER, "--step-early"],
        "--step-early is about backward passes, of which --objective lg-fg has none: leave out",
    ),
    "smoothing": (
        [*MIXER, "--head-smoothing", "0.1"],
        "--objective lg-fg: its formulas are of the plain cross entropy: ",
    ),
    "an option": (
        [*MIXER, "--objective-options", "perturb=both"],
        "--objective-options perturb=both: give perturb=activity|weight",
    ),
    "passes": (
        [*MIXER, "--objective-options", "passes=0"],
        "LGFG: passes=0: give a whole number from 1 to 1000",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_is_said_in_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = ERRORS[case]
    arguments = ["train", "--objective", "lg-fg", *arguments, "--out", str(tmp_path / "run")]
    assert cli.run(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pipelocal: error: {expected}")
    assert error.count("\n") == 1


def test_images_that_cannot_be_divided() -> None:
    for shape, options in (
        ((1, 28, 28), {"side": 8, "groups": 2}),
        ((7,), {"side": 1, "groups": 2}),
        ((1, 8, 8), {"side": 2, "groups": 3}),
    ):
        with pytest.raises(UserError, match="local-mixer: "):
            local_mixer(shape, 10, blocks=1, width=8, **options)


def test_options_that_cannot_be() -> None:
    for wrong in ({"noise": "pink"}, {"passes": 1.5}, {"losses": "all"}):
        with pytest.raises(UserError, match="LGFG: "):
            LGFG(**wrong)
