"""Heads over tokens, the choice of a head by features and labels, and what does not fit."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelocal.errors import UserError
from pipelocal.heads.build import HEADS, build_head, check_output
from pipelocal.heads.linear import TokenMeanLinear
from pipelocal.heads.mlp import MLPHead
from pipelocal.models.layers import PooledLinear, TokenLinear

TOKENS = (5, 6)
"""Five tokens of six channels."""


def _standard(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_one_answer_for_every_token(name: str) -> None:
    head = build_head(HEADS.get(name), TOKENS, classes=10, target_shape=(5,))
    x = torch.randn(3, *TOKENS)
    logits = head(x)
    assert logits.shape == (3, 5, 10)
    x[:, 2] *= -1
    assert (head(x) != logits).any(2).tolist() == [[False, False, True, False, False]] * 3


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_one_answer_for_all_tokens(name: str) -> None:
    """The order of the tokens does not matter to the mean, that of the channels does."""
    head = build_head(HEADS.get(name), TOKENS, classes=10, target_shape=()).double()
    x = torch.randn(3, *TOKENS, dtype=torch.float64)
    assert head(x).shape == (3, 10)
    torch.testing.assert_close(head(x.flip(1)), head(x))
    assert not torch.allclose(head(x.flip(2)), head(x))


def test_what_they_compute() -> None:
    x = torch.randn(3, *TOKENS, dtype=torch.float64)
    token, mean = TokenLinear(TOKENS, 4).double(), TokenMeanLinear(TOKENS, 4).double()
    torch.testing.assert_close(token(x), token.linear(_standard(x)))
    torch.testing.assert_close(mean(x), mean.linear(_standard(x.mean(1))))
    mlp = MLPHead(6, 4, pooled=False).double()
    torch.testing.assert_close(mlp(x), mlp.linear(F.gelu(mlp.hidden(_standard(x)))))
    images = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    pooled = MLPHead(6, 4).double()
    expected = pooled.linear(F.gelu(pooled.hidden(_standard(images.mean((2, 3))))))
    torch.testing.assert_close(pooled(images), expected)


@pytest.mark.parametrize(
    ("feature_shape", "target_shape", "kind"),
    [
        ((6,), (), PooledLinear),
        ((6, 5, 4), (), PooledLinear),
        (TOKENS, (), TokenMeanLinear),
        (TOKENS, (5,), TokenLinear),
    ],
)
def test_linear_is_what_features_and_labels_ask_for(
    feature_shape: tuple[int, ...], target_shape: tuple[int, ...], kind: type[nn.Module]
) -> None:
    assert (
        type(build_head(HEADS.get("linear"), feature_shape, classes=3, target_shape=target_shape))
        is kind
    )


@pytest.mark.parametrize(
    ("name", "feature_shape", "target_shape", "said"),
    [
        ("linear", TOKENS, (4,), r"makes \[5, 3\].*wants outputs \[4, 3\]: choose --head lin"),
        ("mlp", TOKENS, (4,), r"makes \[5, 3\].*wants outputs \[4, 3\]"),
        ("linear", (6,), (5,), r"outputs \[5, 3\] want a model that passes on tokens \[T, C\]"),
        ("conv", TOKENS, (5,), "choose --head linear"),
        ("dgl", TOKENS, (), r"'dgl' wants features \[C, H, W\].*\[5, 6\]: choose --head linear"),
    ],
)
def test_what_does_not_fit_is_one_line(
    name: str, feature_shape: tuple[int, ...], target_shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        build_head(HEADS.get(name), feature_shape, classes=3, target_shape=target_shape)
    assert "\n" not in str(caught.value)


def test_pooling_over_channels_by_mistake_is_refused() -> None:
    with pytest.raises(UserError, match=r"tokens \[5, 6\]: choose --head linear"):
        PooledLinear(TOKENS, 3)


def test_a_users_head_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS._entries, "own", lambda _, classes: nn.Linear(7, classes))
    with pytest.raises(UserError, match=r"head 'own' does not take features \[6\] \(.*\): choose"):
        build_head(HEADS.get("own"), (6,), classes=3, target_shape=())


def test_trying_a_head_leaves_it_as_it_was() -> None:
    head = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    generator = torch.get_rng_state()
    check_output(head, (6,), (3,), what="head", mend="")
    assert head.training
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
