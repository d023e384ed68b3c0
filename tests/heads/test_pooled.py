"""Auxiliary heads: shapes, what they compute, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipelocal.errors import UserError
from pipelocal.heads import HEADS, HeadBuilder, conv, dgl, linear, mlp
from pipelocal.heads.conv import ConvHead
from pipelocal.heads.dgl import DGLHead
from pipelocal.models.layers import PooledLinear


@pytest.mark.parametrize(
    ("name", "feature_shape"),
    [
        *[(name, shape) for name in ("linear", "mlp") for shape in ((6,), (6, 5, 4), (6, 5))],
        *[(name, shape) for name in ("conv", "dgl") for shape in ((6, 5, 4), (6, 1, 1))],
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


def test_conv_is_one_convolution_and_two_fully_connected_layers() -> None:
    head = ConvHead(4, 3).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    y = F.conv2d(x, head.conv.weight, stride=2, padding=1).movedim(1, -1)
    mean = F.relu(_batch_norm(y)).mean((1, 2))
    torch.testing.assert_close(head(x), head.linear(F.relu(head.hidden(mean))))


def test_dgl_shrinks_the_map_and_mixes_its_channels() -> None:
    head = DGLHead((4, 16, 13), 3).double()
    x = torch.randn(3, 4, 16, 13, dtype=torch.float64)
    y = F.adaptive_avg_pool2d(x, (4, 4)).movedim(1, -1)
    weights = [value for value in head.parameters() if value.dim() > 1]
    for weight in weights[:3]:
        y = F.relu(_batch_norm(y @ weight.flatten(1).T))
    y = y.reshape(3, 2, 2, 2, 2, 4).mean((2, 4)).permute(0, 3, 1, 2).flatten(1)
    for weight in weights[3:5]:
        y = F.relu(_batch_norm(y @ weight.T))
    torch.testing.assert_close(head(x), head.linear(y))


def _batch_norm(x: Tensor) -> Tensor:
    """With the batch's own statistics; channels last."""
    rest = tuple(range(x.dim() - 1))
    return (x - x.mean(rest)) / (x.var(rest, unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("head", "shape", "parameters", "multiply_adds"),
    [
        (linear, (16, 32, 32), 10 * 17, 10 * 16),
        (mlp, (64, 8, 8), 64 * 2 + 64 * 65 + 10 * 65, 64 * 64 + 10 * 64),
        (conv, (16, 32, 32), 9 * 16 * 32 + 64 + 128 * 33 + 1290, 1_179_648 + 32 * 128 + 1280),
        (conv, (64, 8, 8), 9 * 64 * 128 + 256 + 128 * 129 + 1290, 1_179_648 + 128 * 128 + 1280),
        (dgl, (16, 32, 32), 3 * (256 + 32) + 2 * (4096 + 128) + 650, 3 * 64 * 256 + 2 * 4096 + 640),
        (dgl, (64, 8, 8), 3 * 4224 + 2 * (256**2 + 512) + 2570, 3 * 4 * 4096 + 2 * 256**2 + 2560),
    ],
)
def test_sizes_as_published(
    head: HeadBuilder, shape: tuple[int, ...], parameters: int, multiply_adds: int
) -> None:
    """1c2f: 1.18 million multiply-adds at each width of a ResNet for CIFAR, if strided."""
    built = head(shape, 10).eval()
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters
    with FlopCounterMode(display=False) as counted:
        built(torch.randn(1, *shape))
    assert counted.get_total_flops() == 2 * multiply_adds


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
        "unknown head 'linaer': choose one of linear, mlp, conv, dgl, "
        "downstream, twin, guided, auto; "
        "did you mean 'linear'?"
    )
