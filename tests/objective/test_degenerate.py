"""Reconciliation of what has no length: zeros, blank rows, numbers whose squares no float32 holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipelocal.closed_form import ClosedFormStage
from pipelocal.objective import (
    DISTANCES,
    ExactReconciliation,
    FirstOrderReconciliation,
    Greedy,
    Objective,
    Reconciliation,
)
from pipelocal.objective.delta_encoding import SUMMARIES
from pipelocal.objective.distances import cosine, length, power_of_two, relative
from pipelocal.objective.residual import Residual
from pipelocal.seeding import seeded
from pipelocal.stage.stage import Stage
from tests.objective.stages import gradients, make_stage, same_bits

FEATURES = 6

BODIES = {
    "relu": lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU()),
    "bias-free": lambda: nn.Sequential(nn.Linear(FEATURES, 5, bias=False), nn.Tanh()),
    "norm": lambda: nn.Sequential(
        nn.Linear(FEATURES, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 5)
    ),
}

SCALES = (0.0, 1e-38, 1e-30, 1e-12, 1e-3, 1.0, 1e4, 1e25)


def objective(form: str, distance: str, fraction: float, delta: str = "full") -> Objective:
    reconciliation = Reconciliation(
        distance=DISTANCES.get(distance),
        fraction=fraction,
        weight=0.1,
        summary=SUMMARIES.get(delta)((FEATURES,), 3, 0),
    )
    make = ExactReconciliation if form == "exact" else FirstOrderReconciliation
    return make(reconciliation)


def values(rows: int, scale: float, blank: int, dtype: torch.dtype) -> Tensor:
    """Random rows of a scale, of which the first ``blank`` are zeros."""
    found = torch.randn(rows, FEATURES) * scale
    found[:blank] = 0.0
    return found.to(dtype)


def batch(
    body: str, what: Objective, dtype: torch.dtype, rows: int, x: tuple[float, int]
) -> tuple[Stage, Tensor]:
    """A stage that met a batch of so many rows, and the input, of a scale and with so many blank rows."""
    with seeded(0, "degenerate"):
        stage = make_stage(BODIES[body]().to(dtype), nn.Linear(5, 3).to(dtype), objective=what)
        inputs = values(rows, *x, dtype)
        target = torch.randint(3, (rows,))
    stage.forward(inputs, reconciled=what.wants_delta)
    stage.output_gradient(target)
    return stage, inputs


def largest(found: dict[str, Tensor]) -> float:
    """Infinite if one is infinite or NaN."""
    peaks = [gradient.double().abs().amax().nan_to_num(torch.inf) for gradient in found.values()]
    return float(torch.stack(peaks).amax())


@given(
    body=st.sampled_from(list(BODIES)),
    form=st.sampled_from(["exact", "first-order"]),
    distance=st.sampled_from(list(DISTANCES)),
    fraction=st.sampled_from([0.5, 1.0]),
    summary=st.sampled_from(list(SUMMARIES)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    rows=st.integers(1, 5),
    x=st.tuples(st.sampled_from(SCALES), st.integers(0, 5)),
    delta=st.tuples(st.sampled_from(SCALES), st.integers(0, 5)),
)
@example("relu", "first-order", "cosine", 0.5, "full", torch.float32, 4, (0.0, 0), (1.0, 0))
@example("relu", "first-order", "cosine", 1.0, "full", torch.float32, 4, (0.0, 0), (1.0, 0))
@example("norm", "first-order", "relative", 0.5, "full", torch.float32, 4, (1.0, 0), (0.0, 0))
@example("norm", "first-order", "relative", 0.5, "int8", torch.float32, 4, (1.0, 0), (1.0, 4))
@example("norm", "exact", "relative", 1.0, "full", torch.float32, 4, (1.0, 0), (1e25, 0))
@example("relu", "first-order", "cosine", 1.0, "full", torch.float32, 1, (1e25, 0), (1e25, 0))
@settings(max_examples=100, derandomize=True)
def test_gradients_are_finite_where_those_of_the_loss_are(
    body: str,
    form: str,
    distance: str,
    fraction: float,
    summary: str,
    dtype: torch.dtype,
    rows: int,
    x: tuple[float, int],
    delta: tuple[float, int],
) -> None:
    """And so is what is reported, unless the figure itself is beyond the dtype."""
    rows += body == "norm"  # which wants two
    assume(body != "norm" or x[0] < 1e19)  # its own variance is infinite beyond
    with seeded(0, "delta"):
        message = SUMMARIES.get(summary)((FEATURES,), 3, 0).encode(
            values(rows, *delta, torch.float32)
        )
    plain, _ = batch(body, Greedy(), dtype, rows, x)
    plain.reconcile(None)
    assume(largest(gradients(plain)) < 1e30)
    if dtype == torch.float32:  # what the exact gradients are, where nothing overflows
        wide, _ = batch(body, objective("exact", distance, 1.0, summary), torch.float64, rows, x)
        wide.reconcile(message.double() if message.is_floating_point() else message)
        assume(largest(gradients(wide)) < 1e30)
    stage, _ = batch(body, objective(form, distance, fraction, summary), dtype, rows, x)
    stage.reconcile(message)
    assert largest(gradients(stage)) < torch.inf
    residual = stage.metrics(torch.zeros(rows, dtype=torch.int64)).residual
    assert residual is not None
    assert torch.isfinite(residual.cosine)
    if delta[0] == 0 or 1e-12 < delta[0] < 1e12:
        assert torch.isfinite(residual.distance)
        assert torch.isfinite(residual.relative)


@pytest.mark.parametrize("form", ["exact", "first-order"])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize("distance", ["cosine", "relative"])
def test_without_delta_there_is_nothing_to_reconcile(
    distance: str, fraction: float, form: str
) -> None:
    """The stage before has no gradient at all: the local loss is left, and D of relative is no 1e24."""
    plain, x = batch("relu", Greedy(), torch.float32, 4, (1.0, 0))
    plain.reconcile(None)
    stage, _ = batch("relu", objective(form, distance, fraction), torch.float32, 4, (1.0, 0))
    stage.reconcile(torch.zeros_like(x))
    assert same_bits(gradients(stage), gradients(plain))


@pytest.mark.parametrize("body", ["relu", "bias-free"])
@pytest.mark.parametrize("fraction", [0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_blank_batch_is_reconciled_as_by_the_exact_form(
    body: str, fraction: float, dtype: torch.dtype
) -> None:
    """The displacement of zeros has a length that is no share of theirs."""
    added = {}
    for form in ("exact", "first-order"):
        stage, x = batch(body, objective(form, "cosine", fraction), dtype, 4, (0.0, 0))
        with seeded(0, "delta"):
            stage.reconcile(torch.randn(x.shape, dtype=torch.float32).to(dtype))
        plain, _ = batch(body, Greedy(), dtype, 4, (0.0, 0))
        plain.reconcile(None)
        added[form] = {
            name: value - gradients(plain)[name] for name, value in gradients(stage).items()
        }
    size = max(float(value.abs().max()) for value in added["exact"].values())
    assert size > 1e-3
    close = {torch.float64: 1e-4, torch.float32: 2e-2}[dtype]
    for name, value in added["exact"].items():
        assert float((added["first-order"][name] - value).abs().max()) < close * size, name


def test_a_blank_batch_trains_by_formulas_too() -> None:
    """A stage of ``--bp-free`` shares the displacement."""
    with seeded(0, "formulas"):
        body = nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU())
        head = nn.Linear(5, 3)
        reconciliation = Reconciliation(weight=0.1)
        stage = ClosedFormStage(
            number=2,
            body=body,
            head=head,
            objective=FirstOrderReconciliation(reconciliation),
            optimizer=torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.1),
        )
        stage.forward(torch.zeros(4, FEATURES), reconciled=True)
        stage.output_gradient(torch.tensor([0, 1, 2, 0]))
        stage.reconcile(torch.randn(4, FEATURES))
    assert largest(gradients(stage)) < torch.inf


@given(st.integers(-60, 60), st.integers(0, 3))
@settings(max_examples=30, derandomize=True)
def test_lengths_of_what_cannot_be_squared(exponent: int, blank: int) -> None:
    with seeded(exponent, "lengths"):
        given_values = torch.randn(4, FEATURES)
    given_values[:blank] = 0.0
    scaled = given_values * 2.0**exponent
    assert float(length(scaled)) == float(torch.linalg.vector_norm(given_values)) * 2.0**exponent
    assert 0.5 <= float((scaled / power_of_two(scaled)).abs().max()) < 1
    assert float(length(torch.zeros(3))) == 0.0


def test_distances_of_long_gradients_are_those_of_short_ones() -> None:
    """Squares of float32 numbers beyond 1e19 are infinite: cosine was 1, relative NaN."""
    with seeded(0, "long"):
        eta, delta = torch.randn(4, FEATURES), torch.randn(4, FEATURES)
    huge = 2.0**80
    for distance in (cosine, relative):
        found, expected = distance(huge * eta, huge * delta), distance(eta, delta)
        assert torch.equal(found, expected)
    far, near = (Residual.of(torch.zeros(()), scale * eta, scale * delta) for scale in (huge, 1.0))
    assert torch.equal(far.cosine, near.cosine)
    assert torch.equal(far.relative, near.relative)
