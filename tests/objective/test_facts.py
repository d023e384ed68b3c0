"""The two facts on which gradient reconciliation rests, in float64.

With ``e_j = eta_j - delta_{j-1}``, ``J_i`` the Jacobian of stage i and ``G_k`` the gradient that
global back-propagation of the last stage's loss gives at the output of stage k::

    F1   G_k - delta_k = sum over j > k of  J_{k+1}^T ... J_{j-1}^T e_j
    F2   every e_j = 0   =>   each stage's local update is the back-propagation update
"""

import copy

import pytest
import torch
from torch import Tensor, autograd, nn

from pipelocal.objective import DISTANCES
from pipelocal.stage.result import StepResult
from pipelocal.stage.stage import Stage
from pipelocal.tasks.classification import cross_entropy
from tests.objective.stages import NETS, Net, RecordingDistance, make_stage, sgr


def _step_all(stages: list[Stage], net: Net) -> list[StepResult]:
    """One batch through all stages in order, as a pipeline passes it on."""
    x, delta = net.x, None
    results = []
    for stage in stages:
        result = stage.step(x, net.target, delta if stage.wants_delta else None)
        results.append(result)
        x, delta = result.output, result.output_gradient
    return results


def _global_gradients(net: Net) -> tuple[list[Tensor], list[Tensor]]:
    """Each stage's output on one graph, and the last loss's gradient at it."""
    outputs, x = [], net.x
    for body in net.bodies:
        x = body(x)
        outputs.append(x)
    loss = cross_entropy(net.heads[-1](x), net.target)
    return outputs, list(autograd.grad(loss, outputs, retain_graph=True))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_f1_residuals_add_up_to_the_gap_to_back_propagation(name: str, weight: float) -> None:
    net = NETS[name]()
    reference = copy.deepcopy(net)
    recorders = [RecordingDistance() for _ in net.bodies]
    stages = [
        make_stage(body, head, number=k, objective=sgr(recorders[k - 1], weight, stage=k))
        for k, (body, head) in enumerate(zip(net.bodies, net.heads, strict=True), start=1)
    ]
    results = _step_all(stages, net)

    outputs, global_gradients = _global_gradients(reference)
    deltas = [result.output_gradient for result in results]
    rows = net.x.shape[0]
    residuals: dict[int, Tensor] = {}  # by stage, from 2; a batch mean's, like delta
    for j in range(2, 5):
        per_sample = recorders[j - 1].eta - recorders[j - 1].delta
        residuals[j] = (per_sample / rows).reshape(deltas[j - 2].shape)

    for k in range(1, 5):
        total = torch.zeros_like(deltas[k - 1])
        for j in range(k + 1, 5):
            if j == k + 1:
                total += residuals[j]
            else:
                total += autograd.grad(
                    outputs[j - 2], outputs[k - 1], residuals[j], retain_graph=True
                )[0]
        gap = global_gradients[k - 1] - deltas[k - 1]
        torch.testing.assert_close(gap, total, rtol=1e-10, atol=1e-14)
        if k < 4:  # else the fact would be about nothing
            assert gap.norm() > 0.1 * deltas[k - 1].norm()
        else:
            torch.testing.assert_close(deltas[3], global_gradients[3], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("distance", [*DISTANCES])
def test_f2_without_residuals_local_training_is_back_propagation(name: str, distance: str) -> None:
    """Heads ``head_{k-1} := head_k o f_k``, so that each stage's loss is the last stage's."""
    net = NETS[name]()
    heads = [net.heads[-1]]
    for body in reversed(net.bodies[1:]):
        heads.insert(0, nn.Sequential(copy.deepcopy(body), copy.deepcopy(heads[0])))
    reference = nn.Sequential(*copy.deepcopy(net.bodies), copy.deepcopy(net.heads[-1]))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)

    recorders = [RecordingDistance(DISTANCES.get(distance)) for _ in net.bodies]
    stages = [
        make_stage(
            body,
            head,
            number=k,
            objective=sgr(recorders[k - 1], 1.0, stage=k),
            momentum=0.9,
        )
        for k, (body, head) in enumerate(zip(net.bodies, heads, strict=True), start=1)
    ]
    before = copy.deepcopy(reference.state_dict())
    for _ in range(3):
        results = _step_all(stages, net)
        optimizer.zero_grad()
        loss = cross_entropy(reference(net.x), net.target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

        for result, recorder in zip(results[1:], recorders[1:], strict=True):
            torch.testing.assert_close(recorder.eta, recorder.delta, rtol=1e-9, atol=1e-13)
            assert recorder.delta.norm() > 1e-2
            assert result.metrics.residual is not None
            assert result.metrics.residual.distance.abs() < 1e-14
        for result in results:
            torch.testing.assert_close(result.metrics.loss, loss.detach(), rtol=1e-12, atol=0)
        parts = [*(stage.body for stage in stages), stages[-1].head]
        for part, expected in zip(parts, reference, strict=True):
            for mine, theirs in zip(part.parameters(), expected.parameters(), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)
    moved = [
        (reference.state_dict()[key] - before[key]).abs().max()
        for key in dict(reference.named_parameters())
    ]
    assert min(moved) > 1e-12
    assert max(moved) > 1e-3
