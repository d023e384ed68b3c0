"""Objectives that send something back, in float64 and to the last bit: PGL and LoCo."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, autograd

from pipelocal import cli
from pipelocal.errors import UserError
from pipelocal.objective import ObjectiveRecipe, Place
from pipelocal.objectives import PGL, LoCo
from pipelocal.stage.stage import Stage
from pipelocal.tasks.classification import cross_entropy
from tests.interrupted import train_until
from tests.launching import run_ranks
from tests.objective.stages import NETS, Net, make_stage, same_bits
from tests.test_transparency import assert_same_bits, train_alone

STAGES = 4
MODEL = ["--model", "resnet8", "--stages", "4", "--head", "linear"]


def stages_of(net: Net, recipe: ObjectiveRecipe) -> list[Stage]:
    stages = len(net.bodies)
    places = [
        Place(number=k, stages=stages, input_shape=(), output_shape=(), total_steps=9)
        for k in range(1, stages + 1)
    ]
    return [
        make_stage(body, head, number=place.number, objective=recipe.for_stage(place))
        for body, head, place in zip(net.bodies, net.heads, places, strict=True)
    ]


def to_gradients(stages: list[Stage], net: Net, *, passed_on: bool) -> list[Tensor]:
    """One batch up to the updates; what was given back, of stages 4 to 2."""
    x = net.x
    for stage in stages:
        x = stage.forward(x)
        stage.output_gradient(net.target)
        stage.reconcile(None)
    back: list[Tensor] = []
    for stage in reversed(stages):
        came = back[-1] if back else None
        if not passed_on and stage.number > 1:
            back.append(stage.give_back().clone())
        if came is not None:
            stage.take_back(came)
        if passed_on and stage.number > 1:
            back.append(stage.give_back().clone())
    return back


@pytest.mark.parametrize("name", NETS)
def test_a_guided_batch_is_back_propagation(name: str) -> None:
    """The bodies' gradients, and those of the last head; the others' heads learn from their own losses."""
    net = NETS[name]()
    reference, alone = copy.deepcopy(net), copy.deepcopy(net)
    stages = stages_of(net, PGL(every=1))
    to_gradients(stages, net, passed_on=True)

    x = reference.x
    for body in reference.bodies:
        x = body(x)
    cross_entropy(reference.heads[-1](x), reference.target).backward()  # type: ignore[no-untyped-call]
    x = alone.x
    for stage, body, head in zip(stages, reference.bodies, reference.heads, strict=True):
        for own, wanted in zip(stage.body.parameters(), body.parameters(), strict=True):
            assert own.grad is not None
            assert wanted.grad is not None
            assert torch.equal(own.grad, wanted.grad)
        if stage.number == STAGES:
            wanted_head = [p.grad for p in head.parameters()]
        else:
            x = alone.bodies[stage.number - 1](x)
            head = alone.heads[stage.number - 1]
            loss = cross_entropy(head(x.detach()), net.target)
            wanted_head = list(autograd.grad(loss, list(head.parameters())))
        for parameter, gradient in zip(stage.head.parameters(), wanted_head, strict=True):
            assert parameter.grad is not None
            assert gradient is not None
            assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("own_weight", [1.0, 2.0, 0.0])
def test_loco_is_autograd_with_overlapping_blocks(name: str, own_weight: float) -> None:
    """Stage k's body gets the gradient of w l_k + l_(k+1), where nothing before stage k is seen."""
    net = NETS[name]()
    reference = copy.deepcopy(net)
    stages = stages_of(net, LoCo(own_weight=own_weight))
    back = to_gradients(stages, net, passed_on=False)

    x = reference.x
    for k, stage in enumerate(stages):
        leaf = x.detach().requires_grad_()
        own = reference.bodies[k](leaf)
        loss = cross_entropy(reference.heads[k](own), reference.target)
        if k > 0:  # what is sent back is of the own loss alone
            (eta,) = autograd.grad(loss, leaf, retain_graph=True)
            torch.testing.assert_close(back[STAGES - 1 - k], eta, rtol=1e-12, atol=1e-15)
        if k + 1 < STAGES:
            following = reference.bodies[k + 1](own)
            overlap = cross_entropy(reference.heads[k + 1](following), reference.target)
            loss = own_weight * loss + overlap
        wanted = autograd.grad(loss, list(reference.bodies[k].parameters()))
        for parameter, gradient in zip(stage.body.parameters(), wanted, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-15)
        x = own


def test_two_stages_without_the_own_loss_are_back_propagation() -> None:
    """Of the first body: the second stage's loss is the global one."""
    whole = NETS["smooth"]()
    net = Net(whole.bodies[:2], whole.heads[:2], whole.x, whole.target)
    reference = copy.deepcopy(net)
    stages = stages_of(net, LoCo(own_weight=0))
    to_gradients(stages, net, passed_on=False)
    x = reference.bodies[1](reference.bodies[0](reference.x))
    cross_entropy(reference.heads[1](x), reference.target).backward()  # type: ignore[no-untyped-call]
    for stage, body in zip(stages, reference.bodies, strict=True):
        for own, wanted in zip(stage.body.parameters(), body.parameters(), strict=True):
            assert own.grad is not None
            assert wanted.grad is not None
            assert torch.equal(own.grad, wanted.grad)


def exported(run: Path) -> dict[str, Tensor]:
    assert cli.run(["export", str(run), "--to", str(run / "model.pt")]) == 0
    found: dict[str, Tensor] = torch.load(run / "model.pt", weights_only=True)
    return found


def test_guided_in_every_batch_it_is_bp_and_in_none_it_is_greedy(tmp_path: Path) -> None:
    steps = ["--max-steps", "6", "--evaluate-every", "99"]
    guided = train_alone(
        [*MODEL, "--objective", "pgl", "--guide-every", "1", *steps], tmp_path / "guided"
    )
    bp = train_alone(["--model", "resnet8", "--objective", "bp", *steps], tmp_path / "bp")
    assert same_bits(exported(guided), exported(bp))
    never = train_alone(
        [*MODEL, "--objective", "pgl", "--guide-every", "7", *steps], tmp_path / "never"
    )
    greedy = train_alone([*MODEL, "--objective", "greedy", *steps], tmp_path / "greedy")
    assert_same_bits(never, greedy)
    assert [stage["backward_bytes"] for stage in summary_of(never)["stages"]] == [0] * STAGES


def test_the_batch_after_a_greedy_one_is_a_step_of_back_propagation() -> None:
    """With one guided batch in two, of the weights after one greedy batch."""
    net = NETS["smooth"]()
    stages = stages_of(net, PGL(every=2))
    to_gradients_of_a_local_batch(stages, net)
    for stage in stages:
        stage.update()
    reference = copy.deepcopy(net)
    to_gradients(stages, net, passed_on=True)
    x = reference.x
    for body in reference.bodies:
        x = body(x)
    cross_entropy(reference.heads[-1](x), reference.target).backward()  # type: ignore[no-untyped-call]
    for stage, body in zip(stages, reference.bodies, strict=True):
        for own, wanted in zip(stage.body.parameters(), body.parameters(), strict=True):
            assert own.grad is not None
            assert wanted.grad is not None
            assert torch.equal(own.grad, wanted.grad)


def to_gradients_of_a_local_batch(stages: list[Stage], net: Net) -> None:
    x = net.x
    for stage in stages:
        x = stage.forward(x)
        stage.output_gradient(net.target)
        stage.reconcile(None)


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


OBJECTIVES = {"pgl": ["--objective", "pgl", "--guide-every", "3"], "loco": ["--objective", "loco"]}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_over_ranks_it_equals_one_process(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an uneven last batch, and from a snapshot on; what was sent back is the formula's."""
    arguments = [*MODEL, *OBJECTIVES[name], "--train-samples", "150", "--epochs", "2"]
    arguments += ["--snapshot-every", "2", "--window", "1"]
    alone = train_alone(arguments, tmp_path / "alone")
    for size in (4, 3):
        out = tmp_path / f"ranks-{size}"
        if size == 4:
            train_until(3, arguments, out, monkeypatch)
        run_ranks(tmp_path / f"log-{size}", ["train", *arguments, "--out", str(out)], size)
        assert_same_bits(alone, out)
    rows = (22 + 22) if name == "pgl" else 2 * 150  # batches 3 and 6 are the last ones of an epoch
    found = [stage["backward_bytes"] for stage in summary_of(alone)["stages"]]
    assert found == [0, *(rows * 4 * numbers for numbers in (16 * 64, 16 * 64, 32 * 16))]
    assert found == [stage["backward_bytes"] for stage in summary_of(out)["stages"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--freeze-stage", "1:3"], "leave it out"),
        (["--step-early"], "leave it out"),
        (["--transport-penalty", "1"], "leave it out"),
        (["--objective-options", "every=2"], "those of pgl are --guide-every"),
        (["--guide-every", "0"], "--guide-every 0"),
        (["--bp-free"], "PGL"),
    ],
)
def test_what_cannot_be_guided_is_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", "--objective", "pgl", "--plain", *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_a_cut_that_several_tensors_cross_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    unet = f"{Path(__file__).parents[1] / 'skipping_models.py'}:unet"
    arguments = ["--model", unet, "--objective", "loco", "--stages", "2", "--head", "linear"]
    assert cli.run(["train", *arguments, "--plain"]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert "LoCo sends back a gradient for one tensor" in line


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match="every=0"):
        PGL(every=0)
    with pytest.raises(UserError, match="own_weight=-1"):
        LoCo(own_weight=-1)


def test_the_plan_and_the_start_say_what_flows_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guided = [*MODEL, "--objective", "pgl", "--guide-every", "4"]
    wanted = ["--data", "digits", "--batch-size", "8", "--device", "meta", "--json"]
    assert cli.run(["plan", *guided, *wanted]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    sizes = [8 * 4 * numbers for numbers in (16 * 64, 16 * 64, 32 * 16)]
    assert [stage["backward_bytes"] for stage in stages] == [0, *(size / 4 for size in sizes)]
    train_alone([*guided, "--batch-size", "8", "--max-steps", "1"], tmp_path / "run")
    said = capsys.readouterr()
    line = "guidance flows back in one batch in 4: 32.0 KiB, 32.0 KiB, 16.0 KiB over the edges"
    assert line in said.err + said.out
