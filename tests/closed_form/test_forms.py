"""Every written-out formula against autograd, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, autograd, nn

from pipelocal.closed_form.form import ClosedForm, accumulate, closed_form_of, refusal
from pipelocal.closed_form.loss import cross_entropy_with_gradient
from pipelocal.closed_form.run import ClosedRun
from pipelocal.heads.linear import TokenMeanLinear
from pipelocal.models.layers import PooledLinear
from pipelocal.models.mixing import (
    GroupedLayerNorm,
    GroupedLinear,
    Patches,
    TokenMean,
    TokenMixing,
)
from pipelocal.tasks.classification import cross_entropy

CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 4), (6, 5)),
    "linear without bias": (nn.Linear(5, 4, bias=False), (6, 5)),
    "linear of tokens": (nn.Linear(5, 4), (3, 7, 5)),
    "conv": (nn.Conv2d(3, 4, 3), (2, 3, 6, 5)),
    "conv without bias": (nn.Conv2d(3, 4, 3, bias=False), (2, 3, 6, 5)),
    "conv with stride": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 8, 8)),
    "conv with a stride that leaves pixels over": (nn.Conv2d(3, 4, 3, stride=(2, 3)), (2, 3, 8, 7)),
    "conv with padding": (nn.Conv2d(3, 4, (3, 5), padding=(1, 2)), (2, 3, 6, 5)),
    "conv with dilation": (nn.Conv2d(3, 4, 3, dilation=2, padding=2), (2, 3, 7, 6)),
    "conv in groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 6, 5)),
    "depthwise conv with stride": (nn.Conv2d(4, 4, 3, groups=4, stride=2), (2, 4, 7, 7)),
    "conv of the same size": (nn.Conv2d(3, 4, 3, padding="same", dilation=2), (2, 3, 6, 6)),
    "conv of valid places": (nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 6, 6)),
    "norm of vectors": (nn.BatchNorm1d(5), (6, 5)),
    "norm over a length": (nn.BatchNorm1d(5), (6, 5, 3)),
    "norm of images": (nn.BatchNorm2d(3, eps=1e-2, momentum=0.3), (4, 3, 5, 2)),
    "norm without weights": (nn.BatchNorm2d(3, affine=False), (4, 3, 5, 2)),
    "norm without statistics": (nn.BatchNorm1d(5, track_running_stats=False), (6, 5)),
    "norm with a plain mean": (nn.BatchNorm1d(5, momentum=None), (6, 5)),
    "relu": (nn.ReLU(), (6, 5)),
    "relu in place": (nn.ReLU(inplace=True), (6, 5)),
    "tanh": (nn.Tanh(), (6, 5)),
    "identity": (nn.Identity(), (6, 5)),
    "flatten": (nn.Flatten(), (2, 3, 4, 2)),
    "pooling to one": (nn.AdaptiveAvgPool2d(1), (2, 3, 4, 2)),
    "pooled linear head": (PooledLinear((3, 4, 2), 5), (2, 3, 4, 2)),
    "pooled linear head on vectors": (PooledLinear((5,), 4), (6, 5)),
    "norm of layers": (nn.LayerNorm(5, eps=1e-3), (3, 7, 5)),
    "norm of layers without bias": (nn.LayerNorm(5, bias=False), (6, 5)),
    "norm of groups": (GroupedLayerNorm(2), (3, 4, 6)),
    "linear in groups": (GroupedLinear(6, 4, 2), (3, 4, 6)),
    "linear in groups of vectors": (GroupedLinear(6, 4, 2), (3, 6)),
    "mixing of tokens": (TokenMixing(4, 5), (3, 4, 6)),
    "patches": (Patches(2), (3, 2, 4, 6)),
    "mean of tokens": (TokenMean(), (3, 4, 6)),
    "linear head on tokens": (TokenMeanLinear((4, 6), 5), (3, 4, 6)),
    "row": (
        nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.BatchNorm2d(3)),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(12, 4),
            nn.ReLU(),
        ),
        (5, 2, 6, 6),
    ),
}


def _case(name: str) -> tuple[nn.Module, Tensor]:
    """A module with weights that are no special values, and an input; both float64."""
    module, shape = CASES[name]
    torch.manual_seed(1)
    module = copy.deepcopy(module).double().train()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module, torch.randn(shape, dtype=torch.float64)


def _close(ours: Tensor | None, expected: Tensor | None) -> None:
    assert ours is not None
    assert expected is not None
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_equals_autograd(name: str) -> None:
    """Output, every gradient, and every buffer."""
    module, x = _case(name)
    reference = copy.deepcopy(module)
    leaf = x.clone().requires_grad_()
    # A clone: what works in place could not change the leaf.
    expected = reference(leaf.clone())
    upstream = torch.randn_like(expected)
    expected.backward(upstream)

    before = x.clone()
    run = ClosedRun(module, x, moves_buffers=True)
    _close(run.out, expected.detach())
    _close(run.backward(upstream, wants_input=True), leaf.grad)
    for ours, theirs in zip(module.parameters(), reference.parameters(), strict=True):
        _close(ours.grad, theirs.grad)
    for one, two in zip(module.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=0)
    assert torch.equal(x, before)
    assert not run.out.requires_grad


@pytest.mark.parametrize("name", CASES)
def test_without_the_gradient_at_the_input(name: str) -> None:
    """The parameters' are the same bits; a second pass adds to them."""
    module, x = _case(name)
    other = copy.deepcopy(module)
    run = ClosedRun(module, x, moves_buffers=True)
    upstream = torch.randn_like(run.out)
    run.backward(upstream, wants_input=True)
    run = ClosedRun(other, x, moves_buffers=True)
    assert run.backward(upstream, wants_input=False) is None
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.equal(one.grad, two.grad)
    run = ClosedRun(other, x, moves_buffers=True)
    run.backward(upstream, wants_input=False)
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        _close(two.grad, 2 * one.grad)


@pytest.mark.parametrize("name", [name for name in CASES if "norm" in name or name == "row"])
def test_running_statistics_move_in_the_main_pass_only(name: str) -> None:
    module, x = _case(name)
    before = {key: value.clone() for key, value in module.named_buffers()}
    ClosedRun(module, x, moves_buffers=False)
    for key, value in module.named_buffers():
        assert torch.equal(value, before[key])
    ClosedRun(module, x, moves_buffers=True)
    for key, value in module.named_buffers():
        assert not torch.equal(value, before[key])


def test_several_batches_of_statistics_are_pytorch_s() -> None:
    for momentum in (0.1, None):
        ours = nn.BatchNorm1d(4, momentum=momentum)
        theirs = copy.deepcopy(ours)
        for _ in range(3):
            x = torch.randn(5, 4)
            ClosedRun(ours, x, moves_buffers=True)
            theirs(x)
        for one, two in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(one, two)


def test_norm_of_a_single_value_is_refused_as_pytorch_refuses_it() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ClosedRun(nn.BatchNorm1d(4), torch.randn(1, 4), moves_buffers=True)


def test_what_is_not_trained_gets_no_gradient() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).requires_grad_(False)
    run = ClosedRun(module, torch.randn(5, 4), moves_buffers=True)
    assert run.backward(torch.randn(5, 3), wants_input=True) is not None
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)])
def test_cross_entropy(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits = 5 * torch.randn(shape, dtype=torch.float64)
    target = torch.randint(5, shape[:-1])
    leaf = logits.clone().requires_grad_()
    expected = cross_entropy(leaf, target)
    (gradient,) = autograd.grad(expected, leaf)
    loss, ours = cross_entropy_with_gradient(logits, target)
    _close(loss, expected.detach())
    _close(ours, gradient)


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    loss, gradient = cross_entropy_with_gradient(logits, torch.tensor([1]))
    torch.testing.assert_close(loss, torch.tensor(2e4))
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0, 0.0]]))


class _Scale(nn.Module):
    """A user's own module type."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_a_form_of_one_s_own() -> None:
    assert refusal(_Scale()) == "_Scale"

    @closed_form_of(_Scale)
    class ScaleForm(ClosedForm[_Scale]):
        def forward(
            self, module: _Scale, x: Tensor, *, moves_buffers: bool
        ) -> tuple[Tensor, tuple[Any, ...]]:
            return x * module.factor, (x,)

        def backward(
            self, module: _Scale, kept: tuple[Any, ...], upstream: Tensor, *, wants_input: bool
        ) -> Tensor:
            (x,) = kept
            accumulate(module.factor, lambda: (upstream * x).sum())
            return upstream * module.factor

    module = _Scale()
    assert refusal(module) is None
    run = ClosedRun(nn.Sequential(module, nn.Flatten()), torch.ones(2, 3), moves_buffers=True)
    eta = run.backward(torch.ones(2, 3), wants_input=True)
    assert eta is not None
    assert eta.tolist() == [[3.0] * 3] * 2
    assert module.factor.grad == 6
    with pytest.raises(ValueError, match="already"):
        closed_form_of(_Scale)(ScaleForm)


class _Louder(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_what_has_no_form_is_named() -> None:
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    expected = {
        "Dropout": nn.Dropout(),
        "_Louder": _Louder(),
        "Linear with hooks": hooked,
        "ParametrizedLinear": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        "Conv2d with padding mode 'reflect'": nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
        "Conv2d with uneven padding": nn.Conv2d(1, 1, 2, padding="same"),
        "AdaptiveAvgPool2d to the size 2": nn.AdaptiveAvgPool2d(2),
    }
    assert [refusal(module) for module in expected.values()] == list(expected)
