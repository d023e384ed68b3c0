"""Distances on gradients whose answer is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, autograd

from pipelocal.objective.distances import DISTANCES, cosine, relative, squared


def _rows(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


ETA = _rows([3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0])
DELTA = _rows([3.0, 4.0], [0.0, 5.0], [0.0, -1.0], [1.0, 0.0])


@pytest.mark.parametrize(
    ("name", "per_sample"),
    [
        ("cosine", [0.0, 1.0, 2.0, 1 - 0.5**0.5]),
        ("relative", [0.0, 26 / 25, 9.0, 1.0]),
        ("squared", [0.0, 26.0, 9.0, 1.0]),
    ],
)
def test_known_values(name: str, per_sample: list[float]) -> None:
    """Of one sample alone, and of the batch."""
    distance = DISTANCES.get(name)
    for row, expected in enumerate(per_sample):
        found = distance(ETA[row : row + 1], DELTA[row : row + 1])
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    batch = 36 / 52 if name == "relative" else sum(per_sample) / 4
    torch.testing.assert_close(distance(ETA, DELTA), torch.tensor(batch, dtype=torch.float64))


@given(st.floats(1e-6, 1e6), st.floats(1, 1e6))
@settings(max_examples=30)
def test_scale(a: float, b: float) -> None:
    """Cosine and relative are free of a common scale, squared is not; cosine of eta's, if not short."""
    torch.testing.assert_close(cosine(a * b * ETA, a * DELTA), cosine(ETA, DELTA))
    torch.testing.assert_close(relative(a * ETA, a * DELTA), relative(ETA, DELTA))
    torch.testing.assert_close(squared(a * ETA, a * DELTA), a * a * squared(ETA, DELTA))


def test_cosine_of_samples_of_different_length() -> None:
    """Lengths are taken sample by sample: a sample with a large gradient has no larger say."""
    longer = torch.tensor([[0.5], [1.0], [1e4], [7.0]], dtype=torch.float64)
    torch.testing.assert_close(cosine(longer * ETA, DELTA), cosine(ETA, DELTA))
    other = torch.tensor([[0.5], [1.0], [2.0], [1.5]], dtype=torch.float64)
    torch.testing.assert_close(cosine(ETA, other * DELTA), cosine(ETA, DELTA))


def test_short_gradients_do_not_rule_the_cosine() -> None:
    """Of two samples: one that is learned, and one whose own gradient has vanished."""
    eta = _rows([1e-9, 2e-9], [0.0, 0.0]).requires_grad_()
    delta = _rows([-1e-9, 1e-9], [0.0, 2.0])
    (gradient,) = autograd.grad(cosine(eta, delta), eta)
    longest = 1 / (0.1 * 2**0.5) / len(eta)
    assert gradient[0].norm() < 1e-6
    torch.testing.assert_close(gradient[1], torch.tensor([0.0, -longest], dtype=torch.float64))


@pytest.mark.parametrize("name", [*DISTANCES])
def test_zero_where_both_are_the_same(name: str) -> None:
    eta = ETA.clone().requires_grad_()
    found = DISTANCES.get(name)(eta, ETA)
    assert found.abs() < 1e-15
    (gradient,) = autograd.grad(found, eta)
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("name", [*DISTANCES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gradients_give_no_nan(name: str, dtype: torch.dtype) -> None:
    zero, some = torch.zeros(1, 3, dtype=dtype), torch.tensor([[0.1, -0.2, 0.3]], dtype=dtype)
    for eta, delta in ((zero, some), (some, zero), (zero, zero)):
        leaf = eta.clone().requires_grad_()
        found = DISTANCES.get(name)(leaf, delta)
        (gradient,) = autograd.grad(found, leaf)
        assert bool(torch.isfinite(found))
        assert bool(torch.isfinite(gradient).all())


def test_values_of_zero_gradients() -> None:
    zero, some = torch.zeros(1, 3), torch.ones(1, 3)
    assert cosine(zero, some) == 1
    assert cosine(some, zero) == 1
    assert relative(zero, zero) == 0
    torch.testing.assert_close(relative(zero, some), torch.tensor(1.0))
    assert squared(zero, some) == 3
