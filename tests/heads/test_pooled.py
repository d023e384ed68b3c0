"""Auxiliary heads: shapes, what they compute, and what they refuse."""

import pytest
import torch
from torch import nn

from pipelocal.errors import UserError
from pipelocal.heads.build import HEADS
from pipelocal.heads.pooled import ConvHead
from pipelocal.models.layers import PooledLinear


@pytest.mark.parametrize(
    ("name", "feature_shape"),
    [
        *[(name, shape) for name in ("linear", "mlp") for shape in ((6,), (6, 5, 4), (6, 5))],
        ("conv", (6, 5, 4)),
    ],
)
def test_logits_shape(name: str, feature_shape: tuple[int, ...]) -> None:
    head = HEADS.get(name)(feature_shape, 10)
    assert head(torch.randn(3, *feature_shape)).shape == (3, 10)


def test_linear_is_the_mean_over_space_and_a_linear_map() -> None:
    head = PooledLinear((6, 5, 4), 3).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    expected = x.mean((2, 3)) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(x), expected)
    flat = torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(head(flat), flat @ head.linear.weight.T + head.linear.bias)


def test_conv_is_convolution_norm_relu_and_the_linear_head() -> None:
    head = ConvHead((4, 5, 5), 3).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    y = nn.functional.conv2d(x, head.conv.weight, padding=1)
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (
        y.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    torch.testing.assert_close(head(x), head.pooled.linear(y.clamp_min(0).mean((2, 3))))


@pytest.mark.parametrize("feature_shape", [(6,), (6, 5)])
def test_conv_refuses_features_that_are_no_images(feature_shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        HEADS.get("conv")(feature_shape, 10)
    text = str(caught.value)
    assert "\n" not in text
    assert f"this stage makes {list(feature_shape)}" in text
    assert "choose --head linear" in text


def test_unknown_name() -> None:
    with pytest.raises(UserError) as caught:
        HEADS.get("linaer")
    assert str(caught.value) == (
        "unknown head 'linaer': choose one of linear, mlp, conv, token, token-mlp, token-mean, "
        "downstream, twin, linear-fixed; "
        "did you mean 'linear'?"
    )
