"""A stage without autograd is the stage with it: gradients, statistics, and what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pipelocal.closed_form import ClosedFormStage
from pipelocal.objective import FirstOrderReconciliation, Greedy
from pipelocal.objective.distances import cosine
from pipelocal.pipeline.bp_gap import BackPropagationGap
from pipelocal.stage.memory import model_tensors
from pipelocal.stage.stage import Stage
from pipelocal.telemetry.memory import SavedBytes
from tests.closed_form.stages import OBJECTIVES, Pair, make_pair, reconciling
from tests.objective.stages import RecordingDistance, gradients, same_bits, weights

BODIES = pytest.mark.parametrize("body", ["dense", "conv"])
OBJECTIVE_NAMES = pytest.mark.parametrize("objective", OBJECTIVES)


def _to_gradients(stage: Stage, pair: Pair) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Output, delta and gradients of one batch, without the update."""
    wants_delta = stage.wants_delta
    output = stage.forward(pair.x, reconciled=wants_delta)
    delta = stage.output_gradient(pair.target)
    stage.reconcile(pair.delta if wants_delta else None)
    return output, delta, gradients(stage)


@BODIES
@OBJECTIVE_NAMES
def test_one_batch_equals_autograd(body: str, objective: str) -> None:
    """A difference quotient divides rounding by its step, a millionth; hence fewer digits for sgr."""
    pair = make_pair(body, objective)
    rtol = 1e-10 if objective == "greedy" else 1e-7
    (out, delta, expected), (our_out, our_delta, ours) = (
        _to_gradients(stage, pair) for stage in pair.both
    )
    torch.testing.assert_close(our_out, out, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(our_delta, delta, rtol=1e-10, atol=1e-13)
    assert our_delta.is_contiguous()
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=rtol, atol=1e-10, msg=name)
    metrics, our_metrics = (stage.metrics(pair.target) for stage in pair.both)
    torch.testing.assert_close(our_metrics.loss, metrics.loss, rtol=1e-12, atol=0)
    assert our_metrics.sums == metrics.sums
    assert our_metrics.weight == metrics.weight
    if metrics.residual is None:
        assert our_metrics.residual is None
    else:
        assert our_metrics.residual is not None
        for name in ("distance", "cosine", "relative"):
            torch.testing.assert_close(
                getattr(our_metrics.residual, name), getattr(metrics.residual, name)
            )
    before, after = weights(pair.autograd), weights(pair.closed)
    for name, value in before.items():  # parameters, which are not moved yet, and statistics
        torch.testing.assert_close(after[name], value, rtol=1e-12, atol=1e-15, msg=name)


@BODIES
def test_reconciliation_is_no_bystander_in_these_tests(body: str) -> None:
    plain, reconciled = (
        _to_gradients(pair.closed, pair)[2]
        for pair in (make_pair(body, name) for name in ("greedy", "sgr on all rows"))
    )
    assert any((reconciled[n] - plain[n]).norm() > 0.02 * plain[n].norm() for n in plain)


@BODIES
def test_eta_equals_autograd(body: str) -> None:
    pair = make_pair(body, "sgr on all rows")
    found = []
    for stage in pair.both:
        recorder = RecordingDistance(cosine)
        stage.objective = reconciling(distance=recorder)
        _to_gradients(stage, pair)
        found.append(recorder.eta)
    assert found[0].norm() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-13)


@BODIES
@OBJECTIVE_NAMES
def test_several_steps_equal_autograd(body: str, objective: str) -> None:
    """Also with batches that are not reconciled in between, as under --reconcile-every."""
    pair = make_pair(body, objective)
    for stage in pair.both:
        generator = torch.Generator().manual_seed(2)
        for step in range(6):
            x = pair.x + 0.3 * torch.randn(pair.x.shape, generator=generator, dtype=torch.float64)
            reconciled = stage.wants_delta and step % 2 == 0
            stage.step(x, pair.target, pair.delta if reconciled else None)
    before, after = (weights(stage) for stage in pair.both)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-9, atol=1e-9, msg=name)
    first = weights(make_pair(body, objective).closed)
    moved = {name for name in first if not torch.equal(first[name], after[name])}
    assert moved == first.keys()


@contextmanager
def _no_graph() -> Iterator[None]:
    """Fails where autograd saves anything for a backward pass."""

    def refuse(tensor: Tensor) -> Tensor:
        raise AssertionError(f"autograd saved a tensor {list(tensor.shape)}")

    with saved_tensors_hooks(refuse, lambda tensor: tensor):
        yield


@BODIES
@OBJECTIVE_NAMES
def test_no_graph_is_made(body: str, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a layer, a head or the loss; the distance alone may have one."""
    pair = make_pair(body, objective)
    direction = FirstOrderReconciliation._direction

    def with_graph(self: FirstOrderReconciliation, eta: Tensor, message: Tensor) -> object:
        assert not eta.requires_grad
        assert not torch.is_grad_enabled()
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            return direction(self, eta, message)

    monkeypatch.setattr(FirstOrderReconciliation, "_direction", with_graph)
    with _no_graph():
        wants_delta = pair.closed.wants_delta
        result = pair.closed.step(pair.x, pair.target, pair.delta if wants_delta else None)
        with pytest.raises(AssertionError, match="autograd saved"):  # the hook does its work
            pair.autograd.step(pair.x, pair.target, pair.delta if wants_delta else None)
    assert not result.output.requires_grad
    assert not result.output_gradient.requires_grad
    assert not result.metrics.loss.requires_grad


@pytest.mark.parametrize("reconciled", [False, True])
def test_nothing_of_a_batch_is_kept_beyond_it(reconciled: bool) -> None:
    pair = make_pair("conv", "sgr on all rows")
    pair.closed.step(pair.x, pair.target, pair.delta if reconciled else None)
    stage = pair.closed
    assert (stage._batch, stage._body_run, stage._delta) == (None, None, None)
    assert all(parameter.grad is None for parameter in stage.body.parameters())


def test_what_a_batch_keeps_is_counted() -> None:
    """Input, normalised values and output of the ReLU; the head's mean; deviations of 6 channels."""
    pair = make_pair("conv", "greedy")
    pair.closed.forward(pair.x)
    pair.closed.output_gradient(pair.target)
    maps = 9 * 6 * 3 * 3
    assert pair.closed.kept_bytes == 8 * (pair.x.numel() + 2 * maps + 9 * 6 + 6)
    counter = SavedBytes(model_tensors(pair.autograd))
    with counter.counting():
        pair.autograd.step(pair.x, pair.target)
    assert pair.closed.kept_bytes < counter.peak_bytes
    assert pair.autograd.kept_bytes == 0


def test_the_output_has_memory_of_its_own() -> None:
    """A body that passes its input on: the input's memory is used again while the output travels."""
    stage = ClosedFormStage(
        number=1,
        body=nn.Sequential(nn.Identity()),
        head=(head := nn.Linear(4, 3)),
        objective=Greedy(),
        optimizer=torch.optim.SGD(head.parameters(), lr=0.1),
    )
    x = torch.randn(5, 4)
    out = stage.forward(x)
    assert torch.equal(out, x)
    assert out.data_ptr() != x.data_ptr()
    stage.output_gradient(torch.tensor([0, 1, 2, 0, 1]))
    stage.reconcile(None)
    stage.update()


def test_gap_to_back_propagation_of_a_last_stage_is_nothing() -> None:
    pair = make_pair("conv", "greedy")
    gap = BackPropagationGap([pair.closed])
    gap.begin(pair.x, pair.target)
    pair.closed.forward(pair.x)
    delta = pair.closed.output_gradient(pair.target)
    pair.closed.reconcile(None)
    measured = gap.compare(pair.closed, delta)
    assert measured is not None
    assert measured.update_cosine == pytest.approx(1.0, abs=1e-12)
    assert measured.residual_sum == pytest.approx(0.0, abs=1e-12)


def test_a_step_is_repeatable() -> None:
    ends = []
    for _ in range(2):
        pair = make_pair("conv", "sgr on some rows")
        for _ in range(3):
            pair.closed.step(pair.x, pair.target, pair.delta)
        ends.append(weights(pair.closed))
    assert same_bits(*ends)


@BODIES
def test_frozen_it_feeds_as_with_autograd(body: str) -> None:
    pair = make_pair(body, "sgr on all rows")
    before = {}
    for stage in pair.both:
        for _ in range(2):
            stage.step(pair.x, pair.target, pair.delta)
        stage.freeze()
        before[stage] = {name: value.clone() for name, value in weights(stage).items()}
    results = []
    for stage in pair.both:
        output = stage.forward(pair.x)
        results.append((output, stage.output_gradient(pair.target)))
        stage.update()
        assert same_bits(weights(stage), before[stage])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
