"""Node and weight perturbation: exact gradients where enumeration makes them so, in float64; and its runs."""

from __future__ import annotations

import json
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from pipelocal import Pipeline, cli, objectives
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.errors import UserError
from pipelocal.models.node_layer import Link, last_steps, probed
from pipelocal.models.rnn import ReadOut, TanhRecurrent, rnn
from pipelocal.objective import ANP, node_rules
from pipelocal.objective.anp import Perturbing
from pipelocal.seeding import seeded
from pipelocal.tasks import Loss, Regression
from tests.interrupted import train_until
from tests.launching import run_ranks
from tests.objective.perturbed import (
    INPUTS,
    OUTPUTS,
    ROWS,
    STEPS,
    UNITS,
    Prescribed,
    along_each,
    close,
    linear_layers,
    mean_of,
    one_layer,
    recurrent,
)
from tests.objective.stages import gradients
from tests.test_transparency import assert_same_bits, train_alone

Rule = Literal["released", "trajectory", "np", "wp"]


@pytest.mark.parametrize("std", [1e-3, 0.7])
def test_np_along_every_unit_is_the_gradient_of_a_quadratic_loss(std: float) -> None:
    case = linear_layers()
    options = ANP(rule="np", std=std)
    found = [
        case.gradients(Prescribed(options, noise))
        for noise in along_each([each.shape for each in case.received()])
    ]
    assert close(mean_of(found, len(found) / 2), case.exact(), 1e-10 if std < 0.1 else 1e-12)


@pytest.mark.parametrize("std", [1e-3, 0.7])
def test_wp_along_every_weight_is_the_gradient_of_a_quadratic_loss(std: float) -> None:
    case, found = one_layer(), []
    (weight,) = case.head.parameters()
    before = weight.detach().clone()
    for place in range(weight.numel()):
        for sign in (1.0, -1.0):
            noise = torch.zeros_like(before)
            noise.view(-1)[place] = sign
            found.append(case.gradients(Prescribed(ANP(rule="wp", std=std), [noise])))
    assert close(mean_of(found, len(found) / 2), case.exact(), 1e-10 if std < 0.1 else 1e-12)
    assert torch.equal(weight, before), "they are as they were"


def test_of_one_layer_trajectory_is_unbiased_and_released_is_not() -> None:
    """The mean over all Rademacher vectors: the gradient, and sqrt(N) / (n B) of it."""
    case = one_layer()
    signs = torch.tensor([*product((1.0, -1.0), repeat=ROWS * UNITS)], dtype=torch.float64)
    for rule, factor in (
        ("trajectory", 1.0),
        ("released", (INPUTS + UNITS) ** 0.5 / (UNITS * ROWS)),
    ):
        options = ANP(rule=rule, std=0.5)  # type: ignore[arg-type]
        found = [case.gradients(Prescribed(options, [each.view(ROWS, 1, UNITS)])) for each in signs]
        wanted = [factor * gradient for gradient in case.exact()]
        assert close(mean_of(found), wanted), rule


@pytest.mark.parametrize("last", [False, True])
def test_noise_on_one_unit_gives_its_gradient(last: bool) -> None:
    """By forward-mode differentiation; and from the gradients at units follow those of all matrices."""
    case = recurrent(last=last)
    zeros = [torch.zeros_like(each) for each in case.received()]
    layers = case.layers()

    def loss(*noise: Tensor) -> Tensor:
        with probed(case.body, case.head, noise=dict(zip(layers, noise, strict=True))):
            return case.loss()

    leaves = tuple(each.requires_grad_() for each in zeros)
    at_units = torch.autograd.grad(loss(*leaves), leaves)
    for place, shape in enumerate(each.shape for each in zeros):
        step, unit = shape[1] - 1, shape[2] - 1
        along = [torch.zeros_like(each) for each in zeros]
        along[place][1, step, unit] = 1.0
        found = torch.func.jvp(loss, tuple(z.detach() for z in zeros), tuple(along))[1]
        assert torch.allclose(found, at_units[place][1, step, unit], rtol=1e-12, atol=1e-14)

    with torch.no_grad(), probed(case.body, case.head) as passes:
        case.head(case.body(case.x))
    links = [
        (gradient, link)
        for done, gradient in zip(passes.values(), at_units, strict=True)
        for link in done.links
    ]
    assert len(links) == 5
    assert close([node_rules.weight_gradient(*each) for each in links], case.exact())


def test_a_step_is_credited_with_the_losses_from_it_on() -> None:
    differences = torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, 0.0]])
    assert node_rules.credit_of(differences, 3).tolist() == [[7, 6, 4], [1, 1, 0]]
    assert node_rules.credit_of(differences, 1).tolist() == [[4], [0]]
    assert node_rules.credit_of(differences[:, :1], 3).tolist() == [[1, 1, 1], [0, 0, 0]]
    assert last_steps(differences, 4).tolist() == [[0, 1, 2, 4], [0, 0, 1, 0]]


def test_released_sees_the_loss_of_its_own_step_alone() -> None:
    """With the loss at the last step, the recurrent layers learn from what they do there."""
    changes = [torch.randn(ROWS, STEPS, UNITS).double(), torch.randn(ROWS, 1, OUTPUTS).double()]
    differences = torch.tensor([[0.5], [0.25]]).double()
    body, head = node_rules.released(changes, differences, inputs=INPUTS)
    root = (INPUTS + UNITS + OUTPUTS) ** 0.5
    assert not body[:, :-1].any()
    last = changes[0][:, -1]
    assert torch.allclose(body[:, -1], root * 0.75 * last / last.square().sum())
    assert torch.allclose(head, root * 0.75 * changes[1] / changes[1].square().sum())
    whole = node_rules.trajectory(changes, differences)
    assert whole[0].all(), "with the trajectory every step is credited"


def test_decorrelation_is_the_formula() -> None:
    case = recurrent()
    layers = case.layers()
    before = {layer: {k: v.clone() for k, v in layer.named_buffers()} for layer in layers}
    with torch.no_grad(), probed(case.body, case.head) as passes:
        case.head(case.body(case.x))
    case.gradients(Perturbing(ANP(decorrelate=0.1)))
    for layer in layers:
        for link, (name, now) in zip(passes[layer].links, layer.named_buffers(), strict=True):
            x = link.inputs.reshape(-1, link.inputs.shape[-1])
            mean = sum((torch.outer(row, row) for row in x), torch.zeros(1).double()) / len(x)
            mean = mean * (1 - torch.eye(len(mean)))
            old = before[layer][name]
            assert torch.allclose(now, old - 0.1 * mean @ old, rtol=1e-12, atol=1e-12)
            assert not torch.equal(now, old)


def test_decorrelation_rests_where_inputs_are_uncorrelated_and_reduces_correlations() -> None:
    def link(inputs: Tensor, matrix: Tensor) -> Link:
        return Link(weight=nn.Parameter(inputs), decorrelation=matrix, inputs=inputs[:, None])

    signs = torch.tensor([*product((1.0, -1.0), repeat=3)], dtype=torch.float64)
    matrix = torch.eye(3).double()
    node_rules.decorrelate(link(signs, matrix), 0.5)
    assert torch.equal(matrix, torch.eye(3).double())

    with seeded(0, "correlated"):
        x = torch.randn(500, 6).double() @ torch.randn(6, 6).double() / 6**0.5

    def energy(matrix: Tensor) -> float:
        seen = x @ matrix.T
        correlation = seen.T @ seen / len(x)
        return float((correlation - correlation.diag().diag()).square().sum())

    matrix = torch.eye(6).double()
    energies = [energy(matrix)]
    for _ in range(300):
        node_rules.decorrelate(link(x @ matrix.T, matrix), 0.05)
        energies.append(energy(matrix))
    assert all(after < before for before, after in pairwise(energies))
    assert energies[-1] < 1e-3 * energies[0]


@pytest.mark.parametrize("truncated", [False, True])
def test_greedy_is_back_propagation_through_time_or_through_one_step(truncated: bool) -> None:
    """Autograd on the graph written out; with ``truncated`` the state of the step before is a constant."""
    case = recurrent(truncated=truncated)
    found = case.gradients(objectives.Greedy())
    p = dict(case.body.named_parameters()) | dict(case.body.named_buffers())
    x = case.x
    for layer in ("0", "1"):
        state, states = torch.zeros(ROWS, UNITS).double(), []
        for t in range(STEPS):
            before = state.detach() if truncated else state
            driven = x[:, t] @ p[f"{layer}.decorrelation"].T @ p[f"{layer}.weight"].T
            back = before @ p[f"{layer}.state_decorrelation"].T @ p[f"{layer}.recurrent"].T
            state = torch.tanh(driven + back)
            states.append(state)
        x = torch.stack(states, 1)
    (weight,), (matrix,) = case.head.parameters(), case.head.buffers()
    loss = (x @ matrix.T @ weight.T - case.target).square().mean()
    parameters = [*case.body.parameters(), weight]
    assert close(found, list(torch.autograd.grad(loss, parameters)))
    assert close(found, recurrent().exact()) != truncated


@pytest.mark.parametrize("rule", ["released", "trajectory", "np", "wp"])
def test_the_clean_pass_is_evaluation_and_nothing_runs_backward(
    rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = recurrent()
    stage = case.stage(Perturbing(ANP(rule=rule)))
    evaluated, logits = stage.evaluate(case.x)

    def refused(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("something is kept for a backward pass, or runs one")

    monkeypatch.setattr(torch.autograd, "backward", refused)
    monkeypatch.setattr(torch.autograd, "grad", refused)
    with torch.autograd.graph.saved_tensors_hooks(refused, refused):  # type: ignore[arg-type]
        out = stage.forward(case.x)
        assert torch.equal(out, evaluated)
        stage.output_gradient(case.target)
        batch = stage._under_way()
        assert batch.logits is not None
        assert torch.equal(batch.logits, logits)
        stage.reconcile(None)
        assert torch.equal(batch.logits, logits), "the figures are of the clean pass"
        stage.update()
    assert not torch.equal(stage.evaluate(case.x)[0], evaluated), "it learnt"


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_noise_comes_from_the_seed_of_the_batch(noise: Literal["gaussian", "rademacher"]) -> None:
    case, found = recurrent(), []
    for step in (0, 0, 1):
        objective = Perturbing(ANP(rule="wp", noise=noise, std=0.01))
        stage = case.stage(objective, lr=0.0)
        stage.steps = step
        stage.step(case.x, case.target)
        generator = torch.Generator().manual_seed(7)
        drawn = objective._drawn(torch.empty(2000), generator)
        assert abs(float(drawn.mean())) < 0.1
        assert abs(float(drawn.std()) - 1) < 0.1
        assert (len(set(drawn.abs().tolist())) == 1) == (noise == "rademacher")
        stage.forward(case.x)
        stage.output_gradient(case.target)
        stage.reconcile(None)
        found.append([*gradients(stage).values()])
    assert close(found[0], found[1], 0)
    assert not close(found[0], found[2], 1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "bp"}, "choose released, trajectory, np or wp"),
        ({"noise": "uniform"}, "choose gaussian"),
        ({"std": 1e-5}, "at least 0.001"),
        ({"decorrelate": -1.0}, "at least 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ANP(**options)


def test_layers_that_cannot_be_perturbed_are_one_line() -> None:
    check, rnn, read_out = ANP().check_stage, TanhRecurrent(2, 2), ReadOut(2, 2, last=True)
    check(nn.Sequential(rnn), nn.Sequential(read_out), stage=1)
    with pytest.raises(UserError, match=r"a Linear .unit '0'.: choose --model rnn"):
        check(nn.Sequential(nn.Linear(2, 2)), read_out, stage=1)
    with pytest.raises(UserError, match=r"LayerNorm .in the head.: choose --head"):
        check(nn.Sequential(rnn), nn.Sequential(nn.LayerNorm(2), read_out), stage=1)
    with pytest.raises(UserError, match="a Dropout"):
        check(nn.Sequential(nn.Sequential(nn.Dropout(), rnn)), read_out, stage=1)


def test_a_loss_that_is_no_mean_over_samples_is_one_line() -> None:
    def squared_sum(output: Tensor, target: Tensor) -> Loss:
        return Loss((output - target).sum().square(), len(target))

    case = recurrent(last=True)
    stage = case.stage(Perturbing(ANP()), Regression(loss=squared_sum))
    stage.forward(case.x)
    with pytest.raises(UserError, match="no mean of that"):
        stage.output_gradient(case.target)


@pytest.mark.parametrize(
    "options",
    [
        {"autocast": "bf16"},
        {"step_early": True},
        {"transport_penalty": 0.1},
        {"replicate": "fsdp"},
    ],
)
def test_what_needs_a_backward_pass_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"ANP has none: (leave it out|choose ddp)"):
        Pipeline(rnn((3, 4), 2), stages=2, objective=objectives.ANP(), **options)


def test_replicas_do_not_share_what_decorrelates() -> None:
    """They changed D by the mean of their changes, so it learnt at a share of its rate."""
    options: dict[str, Any] = {"model": "rnn-last", "objective": "anp", "stages": 2}
    decorrelating = {**options, "objective_options": ("decorrelate=0.1",)}
    with pytest.raises(UserError, match=r"ANP: decorrelate=0.1 .* --replicas"):
        validate(TrainConfig(**decorrelating, replicas="2"))
    validate(TrainConfig(**options, replicas="2"))
    for one in ("1", "1,1", "auto"):
        validate(TrainConfig(**decorrelating, replicas=one))


def test_over_ranks_it_equals_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it goes on from a snapshot: noise comes from seed and step, D is saved and exported."""
    arguments = ["--objective", "anp", "--objective-options", "decorrelate=0.05", "rule=np"]
    arguments += ["--model", "rnn-last", "--stages", "4", "--max-steps", "8"]
    arguments += ["--snapshot-every", "3", "--lr", "0.05"]
    alone = train_alone(arguments, tmp_path / "alone")
    out = tmp_path / "ranks"
    train_until(5, arguments, out, monkeypatch)
    run_ranks(tmp_path / "log", ["train", *arguments, "--out", str(out)], 2)
    assert_same_bits(alone, out)
    assert cli.run(["export", str(alone), "--to", str(tmp_path / "model.pt")]) == 0
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    for name in ("layer1.decorrelation", "layer4.state_decorrelation", "classifier.decorrelation"):
        assert not torch.equal(exported[name], torch.eye(len(exported[name]))), name
    stages = json.loads((alone / "summary.json").read_text())["stages"]
    activations = (8 * 64 + 355) * 8 * 64 * 4  # rows of 8 steps of 64 units: no second pass travels
    for stage in stages[:-1]:
        assert activations < stage["sent_bytes"] < 1.05 * activations
