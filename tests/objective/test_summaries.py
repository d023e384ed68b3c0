"""What travels of delta, and what the receiver makes of it."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import Tensor

from pipelocal.heads.linear import TokenMeanLinear
from pipelocal.models.layers import PooledLinear
from pipelocal.objective.delta_encoding import SUMMARIES, Summary
from pipelocal.objective.reconciliation import Reconciliation
from pipelocal.seeding import seeded
from pipelocal.tasks.classification import cross_entropy

SHAPES = [(6,), (5, 6), (4, 3, 3)]
ROWS = 7


def a_summary(name: str, shape: tuple[int, ...], *, size: int = 16, seed: int = 0) -> Summary:
    return SUMMARIES.get(name)(shape, size, seed)


def gradients(shape: tuple[int, ...]) -> Tensor:
    """Of very different lengths, as samples' gradients are."""
    with seeded(0, "gradients"):
        scale = torch.logspace(-6, 1, ROWS).view(-1, *[1] * len(shape))
        return torch.randn(ROWS, *shape) * scale


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", list(SUMMARIES))
def test_a_message_is_of_the_shape_and_dtype_that_are_announced(
    name: str, shape: tuple[int, ...]
) -> None:
    summary = a_summary(name, shape)
    message = summary.encode(gradients(shape))
    assert message.shape == (ROWS, *summary.shape)
    assert message.dtype == summary.dtype
    eta, delta = Reconciliation(summary=summary).comparable(gradients(shape), message)
    assert eta.shape == delta.shape
    assert eta.dtype == delta.dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "error"), [("full", 0.0), ("bf16", 2**-8), ("int8", 0.5 / 127)])
def test_forms_of_delta_itself_come_back_up_to_rounding(
    name: str, error: float, shape: tuple[int, ...]
) -> None:
    """Of every sample in its own scale, which spans seven orders of magnitude here."""
    summary, delta = a_summary(name, shape), gradients(shape)
    back = summary.decode(summary.encode(delta))
    assert back.shape == delta.shape
    largest = delta.flatten(1).abs().amax(1)
    assert bool(((back - delta).flatten(1).abs().amax(1) <= error * largest * 1.001).all())


def test_int8_of_nothing_is_nothing() -> None:
    summary = a_summary("int8", (4,))
    assert torch.equal(summary.decode(summary.encode(torch.zeros(2, 4))), torch.zeros(2, 4))


@pytest.mark.parametrize("kind", ["image", "tokens"])
def test_pooled_is_exact_for_a_pooled_linear_head(kind: str) -> None:
    """Such a head's loss has the same gradient at every place."""
    shape = (4, 3, 3) if kind == "image" else (5, 6)
    head = PooledLinear(shape, 3) if kind == "image" else torch.nn.Linear(6, 3)
    out = torch.randn(ROWS, *shape, requires_grad=True)
    logits = head(out) if kind == "image" else head(out.mean(1))
    (delta,) = torch.autograd.grad(cross_entropy(logits, torch.arange(ROWS) % 3), out)
    summary = a_summary("pooled", shape)
    torch.testing.assert_close(summary.decode(summary.encode(delta)), delta)
    assert prod(summary.shape) == (4 if kind == "image" else 6)


def test_pooled_is_not_exact_for_other_gradients() -> None:
    """The test above can fail."""
    summary, delta = a_summary("pooled", (4, 3, 3)), gradients((4, 3, 3))
    assert not torch.allclose(summary.decode(summary.encode(delta)), delta)


def test_pooled_is_exact_for_the_token_head_with_a_norm_behind_the_mean() -> None:
    head, out = TokenMeanLinear((5, 6), 3), torch.randn(ROWS, 5, 6, requires_grad=True)
    (delta,) = torch.autograd.grad(cross_entropy(head(out), torch.arange(ROWS) % 3), out)
    summary = a_summary("pooled", (5, 6))
    torch.testing.assert_close(summary.decode(summary.encode(delta)), delta)


def test_a_sketch_keeps_inner_products_in_the_mean() -> None:
    with seeded(0, "sketch"):
        one, two = torch.randn(2, 1, 400)
        two = two + one  # so that there is an inner product to keep
    expected = float((one * two).sum())
    found = []
    for seed in range(300):
        sketch = a_summary("sketch", (400,), size=64, seed=seed)
        found.append(float((sketch.encode(one) * sketch.reduce(two)).sum()))
    mean = sum(found) / len(found)
    spread = (sum((value - mean) ** 2 for value in found) / len(found)) ** 0.5
    assert abs(mean - expected) < 4 * spread / len(found) ** 0.5
    assert spread < 0.5 * expected


def test_a_sketch_of_as_many_numbers_as_there_are_loses_nothing() -> None:
    delta = gradients((50,))
    for size in (50, 64):
        sketch = a_summary("sketch", (50,), size=size)
        torch.testing.assert_close(sketch.encode(delta).abs(), delta.abs())
        assert sketch.shape == (50,)


def test_both_ends_of_an_edge_draw_the_same_sketch_and_others_do_not() -> None:
    delta = gradients((50,))
    one, same, other = (a_summary("sketch", (50,), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.encode(delta), same.reduce(delta))
    assert not torch.equal(one.encode(delta), other.reduce(delta))


def test_a_sketch_is_never_larger_than_what_it_sums_up() -> None:
    assert a_summary("sketch", (6,), size=256).shape == (6,)
