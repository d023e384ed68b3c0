"""What the objectives' gradients are, and that the label enters through nothing but the objective."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, autograd, nn

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import objective_of
from pipelocal.objective import DISTANCES, Greedy
from pipelocal.stage.result import StepResult
from pipelocal.tasks.classification import cross_entropy
from tests.objective.stages import (
    NETS,
    RecordingDistance,
    gradients,
    make_stage,
    place,
    same_bits,
    sgr,
    train_step_to_gradients,
    weights,
)


def _cosine(eta: Tensor, delta: Tensor) -> Tensor:
    least = 0.1 * (sum(float(d @ d) for d in delta) / len(delta)) ** 0.5
    cosines = [
        e @ d / (e.norm().clamp_min(least) * d.norm().clamp_min(least))
        for e, d in zip(eta, delta, strict=True)
    ]
    return (1 - torch.stack(cosines)).mean()


def _relative(eta: Tensor, delta: Tensor) -> Tensor:
    differences = [(e - d).norm() ** 2 for e, d in zip(eta, delta, strict=True)]
    return torch.stack(differences).sum() / torch.stack([d.norm() ** 2 for d in delta]).sum()


def _squared(eta: Tensor, delta: Tensor) -> Tensor:
    return torch.stack([(e - d).norm() ** 2 for e, d in zip(eta, delta, strict=True)]).mean()


REFERENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": _cosine,
    "relative": _relative,
    "squared": _squared,
}


def _case(name: str) -> tuple[nn.Sequential, nn.Module, Tensor, Tensor, Tensor]:
    """Body and head of stage 2 with an input, labels and a delta of the size that one has."""
    torch.manual_seed(3)
    if name == "dense":
        body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.GELU())
        head: nn.Module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
        x = torch.randn(4, 4)
    else:
        body = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.GELU())
        head = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        x = torch.randn(4, 2, 4, 4)
    target = torch.tensor([2, 0, 1, 1])
    delta = 0.1 * torch.randn(x.shape, dtype=torch.float64)
    return body.double(), head.double(), x.double(), target, delta


@pytest.mark.parametrize("distance", REFERENCES)
@pytest.mark.parametrize("case", ["dense", "conv"])
def test_exact_reconciliation_against_finite_differences(distance: str, case: str) -> None:
    """Every parameter of body and head, against central differences of ``l + lambda D``."""
    body, head, x, target, delta = _case(case)
    weight, rows, eps = 0.7, x.shape[0], 1e-5

    def objective() -> float:
        leaf = x.clone().requires_grad_()
        loss = cross_entropy(head(body(leaf)), target)
        (eta,) = autograd.grad(loss, leaf)
        distance_now = REFERENCES[distance]((eta * rows).flatten(1), (delta * rows).flatten(1))
        return (loss + weight * distance_now).item()

    stage = make_stage(body, head, objective=sgr(DISTANCES.get(distance), weight))
    found = train_step_to_gradients(stage, x, target, delta)

    largest_share = 0.0
    plain = make_stage(copy.deepcopy(body), copy.deepcopy(head), objective=Greedy())
    local = train_step_to_gradients(plain, x, target, None)
    for part, module in (("body", body), ("head", head)):
        for name, parameter in module.named_parameters():
            flat = parameter.data.view(-1)
            expected = torch.empty_like(flat)
            for i in range(flat.numel()):
                value = float(flat[i])
                flat[i] = value + eps
                above = objective()
                flat[i] = value - eps
                below = objective()
                flat[i] = value
                expected[i] = (above - below) / (2 * eps)
            mine = found[f"{part}.{name}"]
            torch.testing.assert_close(mine.view(-1), expected, rtol=1e-5, atol=1e-8)
            share = (mine - local[f"{part}.{name}"]).norm() / mine.norm()
            largest_share = max(largest_share, float(share))
    assert largest_share > 0.05  # the reconciliation term is no bystander in this comparison


def test_loss_and_distance_that_are_reported() -> None:
    body, head, x, target, delta = _case("dense")
    recorder = RecordingDistance(DISTANCES.get("cosine"))
    stage = make_stage(body, head, objective=sgr(recorder, 0.3))
    expected = cross_entropy(head(body(x)), target)
    result = stage.step(x, target, delta)
    torch.testing.assert_close(result.metrics.loss, expected.detach())
    assert result.metrics.residual is not None
    torch.testing.assert_close(
        result.metrics.residual.distance, _cosine(recorder.eta, recorder.delta)
    )
    torch.testing.assert_close(recorder.delta, delta.flatten(1) * 4)
    for value in (result.metrics.loss, result.metrics.residual.distance):
        assert value.shape == ()
        assert not value.requires_grad


def test_output_gradient_is_the_local_loss_s_for_both_objectives() -> None:
    """delta is the gradient of l alone: with the regulariser in it, it would be no stage's own."""
    body, head, x, target, delta = _case("conv")
    out = body(x).detach().requires_grad_()
    (expected,) = autograd.grad(cross_entropy(head(out), target), out)
    for objective in (Greedy(), sgr(DISTANCES.get("squared"), 5.0)):
        stage = make_stage(copy.deepcopy(body), copy.deepcopy(head), objective=objective)
        result = stage.step(x, target, delta if stage.wants_delta else None)
        torch.testing.assert_close(result.output_gradient, expected, rtol=1e-12, atol=1e-15)
        assert not result.output_gradient.requires_grad


@pytest.mark.parametrize("distance", [*DISTANCES])
@pytest.mark.parametrize("name", NETS)
def test_duplicated_batch_gives_the_same_distance_and_gradients(distance: str, name: str) -> None:
    """The batch twice over: delta and eta halve, but neither the distance nor the update may move."""
    found: list[tuple[Tensor, dict[str, Tensor]]] = []
    for copies in (1, 2):
        net = NETS[name]()
        x, target = torch.cat([net.x] * copies), torch.cat([net.target] * copies)
        first = make_stage(net.bodies[0], net.heads[0], number=1)
        second = make_stage(
            net.bodies[1], net.heads[1], objective=sgr(DISTANCES.get(distance), 0.8)
        )
        output = first.forward(x)
        delta = first.output_gradient(target)
        second.forward(output, reconciled=True)
        second.output_gradient(target)
        second.reconcile(delta)
        residual = second.metrics(target).residual
        assert residual is not None
        found.append((residual.distance, gradients(second)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=0)
    assert found[0][0] > 1e-3
    for key, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][key], rtol=1e-8, atol=1e-12)


def _three_steps(delta_scale: float, weight: float, distance: str) -> dict[str, Tensor]:
    """Weights after three steps with deltas that are drawn from another seed for each scale."""
    body, head, x, target, _ = _case("conv")
    stage = make_stage(
        body, head, objective=sgr(DISTANCES.get(distance), weight), lr=0.5, momentum=0.9
    )
    torch.manual_seed(int(delta_scale * 1000))
    for _ in range(3):
        delta = delta_scale * torch.randn(x.shape, dtype=x.dtype)
        stage.step(x, target, delta)
    return weights(stage)


@pytest.mark.parametrize("distance", [*DISTANCES])
def test_no_leak_with_weight_zero_any_delta_gives_the_same_bits(distance: str) -> None:
    """delta carries the label; nothing of it may reach the weights but through the distance."""
    expected = _three_steps(0.1, 0.0, distance)
    for scale in (0.0, 0.001, 1.0, 100.0):
        assert same_bits(_three_steps(scale, 0.0, distance), expected), scale
    assert not same_bits(_three_steps(0.1, 0.1, distance), expected)
    assert not same_bits(_three_steps(0.2, 0.1, distance), _three_steps(0.1, 0.1, distance))


def test_no_leak_when_the_distance_ignores_delta() -> None:
    """The distance is the only door: where it is blind to delta, training is, at any weight."""

    def blind(eta: Tensor, delta: Tensor) -> Tensor:
        return eta.square().sum(1).mean()

    found = []
    for scale in (0.0, 1.0, 1000.0):
        body, head, x, target, delta = _case("dense")
        stage = make_stage(body, head, objective=sgr(blind, 2.0))
        for _ in range(3):
            stage.step(x, target, scale * delta)
        found.append(weights(stage))
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])


@pytest.mark.parametrize("distance", [*DISTANCES])
def test_no_leak_into_output_loss_and_predictions(distance: str) -> None:
    """What the stage shows and passes on from a batch is the same bits for any delta."""

    def step(scale: float) -> tuple[StepResult, Tensor]:
        body, head, x, target, delta = _case("conv")
        stage = make_stage(body, head, objective=sgr(DISTANCES.get(distance), 0.5))
        logits: list[Tensor] = []
        head.register_forward_hook(lambda _module, _inputs, output: logits.append(output.detach()))
        result = stage.step(x, target, scale * delta)
        assert len(logits) == 1
        return result, logits[0]

    expected, expected_logits = step(1.0)
    for scale in (0.0, -1.0, 50.0):
        result, logits = step(scale)
        assert torch.equal(result.output, expected.output)
        assert torch.equal(logits, expected_logits)
        assert torch.equal(result.output_gradient, expected.output_gradient)
        assert torch.equal(result.metrics.loss, expected.metrics.loss)
        assert result.metrics.sums == expected.metrics.sums


@pytest.mark.parametrize("distance", [*DISTANCES])
def test_gradient_is_linear_in_the_weight(distance: str) -> None:
    """``grad l + lambda grad D``, so that the distance comes in once and with its weight."""

    def at(weight: float) -> dict[str, Tensor]:
        body, head, x, target, delta = _case("dense")
        stage = make_stage(body, head, objective=sgr(DISTANCES.get(distance), weight))
        return train_step_to_gradients(stage, x, target, delta)

    none, one, some = at(0.0), at(1.0), at(0.3)
    for key, gradient in some.items():
        expected = none[key] + 0.3 * (one[key] - none[key])
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("distance", [*DISTANCES])
def test_samples_without_gradient_give_finite_updates(distance: str) -> None:
    """A sample whose units are all dead has eta = 0; a perfectly fitted one has delta = 0."""
    torch.manual_seed(0)
    first = nn.Linear(4, 6)
    nn.init.constant_(first.bias, -1.0)
    body = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 5))
    head = nn.Linear(5, 3)
    stage = make_stage(body, head, objective=sgr(DISTANCES.get(distance), 1e-3), lr=1e-3)
    x = torch.randn(3, 4)
    x[0] = 0.0
    delta = 0.1 * torch.randn(3, 4)
    delta[1] = 0.0
    found = train_step_to_gradients(stage, x, torch.tensor([0, 1, 2]), delta)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found.values())
    residual = stage.metrics(torch.tensor([0, 1, 2])).residual
    assert residual is not None
    assert bool(torch.isfinite(residual.distance))


def test_body_without_parameters() -> None:
    """The head still learns, and a later stage still gets its delta."""
    for objective in (Greedy(), sgr(DISTANCES.get("cosine"), 0.1)):
        torch.manual_seed(0)
        head = nn.Linear(4, 3)
        stage = make_stage(nn.Sequential(nn.Tanh()), head, objective=objective)
        before = weights(stage)
        x = torch.randn(5, 4)
        delta = torch.randn(5, 4) if stage.wants_delta else None
        result = stage.step(x, torch.tensor([0, 1, 2, 0, 1]), delta)
        assert result.output_gradient.norm() > 0
        assert not same_bits(before, weights(stage))


def test_objectives_by_name() -> None:
    """Only sgr wants delta, and not on stage 1, before which there is nothing."""
    wants = {
        (name, stage): objective_of(TrainConfig(objective=name)).for_stage(place(stage)).wants_delta
        for name in ("bp", "greedy", "sgr")
        for stage in (1, 2)
    }
    assert [key for key, wanted in wants.items() if wanted] == [("sgr", 2)]


def test_cross_entropy_of_sequences_is_the_mean_over_all_tokens() -> None:
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    target = torch.randint(7, (2, 5))
    log_probabilities = logits.log_softmax(-1)
    expected = -sum(log_probabilities[b, t, int(target[b, t])] for b in range(2) for t in range(5))
    torch.testing.assert_close(cross_entropy(logits, target), torch.as_tensor(expected) / 10)
