"""Heads that answer for every pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipelocal.errors import UserError
from pipelocal.heads import HEADS, build_head
from pipelocal.heads.maps import MapLinear

OUTPUT = (3, 8, 10)


@pytest.mark.parametrize("name", ["linear", "mlp", "conv"])
@pytest.mark.parametrize("feature_shape", [(6, 8, 10), (6, 4, 5), (6, 1, 1), (6, 16, 20)])
def test_maps_of_any_resolution(name: str, feature_shape: tuple[int, ...]) -> None:
    head = build_head(
        HEADS.get(name), feature_shape, classes=3, target_shape=(8, 10), output_shape=OUTPUT
    )
    assert head(torch.randn(2, *feature_shape)).shape == (2, *OUTPUT)


def test_a_linear_map_of_each_pixel_and_then_interpolation() -> None:
    head = MapLinear(6, OUTPUT)
    weight, bias = head.linear.weight.flatten(1), head.linear.bias
    assert bias is not None
    x = torch.randn(2, 6, 8, 10)
    expected = torch.einsum("bchw,kc->bkhw", x, weight) + bias[:, None, None]
    torch.testing.assert_close(head(x), expected)
    small = torch.randn(2, 6, 4, 5)
    coarse = torch.einsum("bchw,kc->bkhw", small, weight) + bias[:, None, None]
    torch.testing.assert_close(head(small), F.interpolate(coarse, (8, 10), mode="bilinear"))


@pytest.mark.parametrize(
    ("name", "feature_shape", "said"),
    [
        ("linear", (6,), r"outputs \[3, 8, 10\] want a model that passes on images \[C, H, W\]"),
        ("dgl", (6, 8, 10), r"one answer for all pixels, .* \[3, 8, 10\]: choose --head conv"),
    ],
)
def test_what_does_not_fit(name: str, feature_shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_head(
            HEADS.get(name), feature_shape, classes=3, target_shape=(8, 10), output_shape=OUTPUT
        )


def test_several_numbers_of_a_sequence_are_one_answer_for_all_its_tokens() -> None:
    """Targets [B, 3] have the rank of tokens' labels; only the shape of the output tells them apart."""
    head = build_head(HEADS.get("linear"), (5, 6), classes=3, target_shape=(3,), output_shape=(3,))
    assert head(torch.randn(2, 5, 6)).shape == (2, 3)
    assert isinstance(head, nn.Module)
