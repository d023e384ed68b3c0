"""The probe finds what cannot be differentiated twice, names it, and leaves no trace."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, autograd, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipelocal.errors import UserError
from pipelocal.heads import conv, dgl
from pipelocal.models import build_chain
from pipelocal.models.layers import PooledLinear
from pipelocal.objective.probe import check_double_backward
from pipelocal.partition import by_count


class _Attention(nn.Module):
    """``[B, T, 8]`` to the same, by PyTorch's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out


class _FusedAttention(nn.Module):
    """``[B, T, 8]`` to the same, by the fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).unflatten(-1, (6, 4)).transpose(1, 2).split(2, dim=1)
        return self.attend(query, key, value).transpose(1, 2).flatten(2)


class _PlainAttention(_FusedAttention):
    """The same by plain operations, as the probe's error advises."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return super().attend(query, key, value)


class _OnceSquare(autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        result: Tensor = 2 * x * gradient
        return result


class _Once(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _OnceSquare.apply(x)  # type: ignore[no-untyped-call]
        return result


def _body(unit: nn.Module) -> nn.Sequential:
    body = nn.Sequential()
    body.add_module("before", nn.Linear(8, 8))
    body.add_module("culprit", unit)
    body.add_module("after", nn.Linear(8, 8))
    return body


class _TokenHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.mean(1))
        return logits


@pytest.mark.parametrize("unit", [_Attention, _FusedAttention, _Once])
def test_refuses_and_names_stage_and_unit(unit: type[nn.Module]) -> None:
    with pytest.raises(UserError) as caught:
        check_double_backward(_body(unit()), _TokenHead(), (5, 8), stage=3)
    text = str(caught.value)
    assert text.startswith("stage 3: unit 'culprit' cannot be differentiated twice")
    assert "choose --reconcile first-order" in text
    assert "\n" not in text


def test_names_the_head() -> None:
    head = nn.Sequential(_Once(), nn.Linear(8, 3))
    said = r"^stage 2: the head cannot be differentiated twice .* or another --head"
    with pytest.raises(UserError, match=said):
        check_double_backward(nn.Sequential(nn.Linear(8, 8)), head, (8,), stage=2)


class _OnceInTraining(_Once):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x


def test_looks_at_the_unit_as_it_trains() -> None:
    with pytest.raises(UserError, match="unit 'culprit'"):
        check_double_backward(_body(_OnceInTraining()).eval(), nn.Identity(), (8,), stage=2)


def test_attention_by_plain_operations_passes() -> None:
    check_double_backward(_body(_PlainAttention()), _TokenHead(), (5, 8), stage=2)


def test_units_without_parameters_pass() -> None:
    body = nn.Sequential(nn.ReLU(), nn.Identity(), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten())
    check_double_backward(body, nn.Identity(), (2, 4, 4), stage=2)


@pytest.mark.parametrize("model", ["mlp", "resnet8", "resnet20"])
def test_ready_models_pass(model: str) -> None:
    chain = build_chain(model, input_shape=(1, 8, 8), classes=10, seed=0)
    shapes = chain.shapes()
    for number, cut in enumerate(by_count(chain, 4), start=1):
        before = shapes[cut.start - 1] if cut.start else chain.input_shape
        after = shapes[cut.stop - 1]
        body = chain.build(cut.start, cut.stop, seed=0)
        heads: list[nn.Module] = [PooledLinear(after, 10)]
        if len(after) == 3:
            heads += [conv(after, 10), dgl(after, 10)]
        if number == 4:
            heads = [chain.build_classifier(seed=0)]
        for head in heads:
            check_double_backward(body, head, before, stage=number)


@pytest.mark.parametrize("unit", [nn.BatchNorm1d(5), nn.Dropout(0.5), _Once()])
def test_leaves_no_trace(unit: nn.Module) -> None:
    """Weights, gradients, statistics, mode and torch's generator are as before, also if it fails."""
    body, head = _body(unit), _TokenHead()
    for i, parameter in enumerate([*body.parameters(), *head.parameters()]):
        parameter.grad = torch.full_like(parameter, float(i))
    body.eval()
    state = copy.deepcopy([body.state_dict(), head.state_dict()])
    modes = [module.training for module in (*body.modules(), *head.modules())]
    torch.manual_seed(5)
    generator = torch.get_rng_state()

    if isinstance(unit, _Once):
        with pytest.raises(UserError):
            check_double_backward(body, head, (5, 8), stage=2)
    else:
        check_double_backward(body, head, (5, 8), stage=2)

    assert torch.equal(torch.get_rng_state(), generator)
    for before, module in zip(state, (body, head), strict=True):
        after = module.state_dict()
        assert list(before) == list(after)
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert modes == [module.training for module in (*body.modules(), *head.modules())]
    for i, parameter in enumerate([*body.parameters(), *head.parameters()]):
        assert parameter.requires_grad
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.full_like(parameter, float(i)))
