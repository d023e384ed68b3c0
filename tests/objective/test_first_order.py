"""First-order reconciliation against the exact form, by double backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from pipelocal.heads.linear import TokenMeanLinear
from pipelocal.models.gpt import Block, CausalAttention
from pipelocal.models.layers import PooledLinear, TokenLinear
from pipelocal.objective import (
    DISTANCES,
    ExactReconciliation,
    FirstOrderReconciliation,
    Greedy,
    Reconciliation,
)
from pipelocal.objective.distances import Distance
from pipelocal.objective.local import Objective
from pipelocal.seeding import seeded
from pipelocal.stage.options import ComputeOptions
from pipelocal.stage.stage import PLAIN, Stage
from pipelocal.system.torchvision import import_torchvision
from tests.objective.stages import gradients, make_stage

ROWS = 6


def cnn() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Convolutions with BatchNorm and ReLU, which ties samples and has kinks."""
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
    )
    return body, PooledLinear((8, 6, 6), 4), torch.randn(ROWS, 3, 6, 6), torch.randint(4, (ROWS,))


def vit() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """torchvision's encoder block, with dropout."""
    vision_transformer = import_torchvision().models.vision_transformer
    body = vision_transformer.EncoderBlock(2, 16, 32, dropout=0.2, attention_dropout=0.0)
    return body, TokenMeanLinear((5, 16), 4), torch.randn(ROWS, 5, 16), torch.randint(4, (ROWS,))


def gpt() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """A block of the GPT, with a label for each token."""
    body, head = Block(math=True), TokenLinear((4, 128), 9)
    return body, head, torch.randn(ROWS, 4, 128), torch.randint(9, (ROWS, 4))


def exact_form(distance: Distance) -> Objective:
    return ExactReconciliation(Reconciliation(distance=distance, weight=0.1))


def first_order(distance: Distance, **settings: Any) -> Objective:
    return FirstOrderReconciliation(Reconciliation(distance=distance, weight=0.1, **settings))


BFLOAT16 = ComputeOptions(autocast="bf16")

MAKERS = {"cnn": cnn, "vit": vit, "gpt": gpt}


def added_gradient(
    make: Callable[[], tuple[nn.Module, nn.Module, Tensor, Tensor]],
    objective: Objective,
    *,
    dtype: torch.dtype = torch.float64,
    compute: ComputeOptions = PLAIN,
) -> dict[str, Tensor]:
    """What reconciliation adds to each parameter's gradient, on the batch of ``make``."""
    return {
        name: value - plain
        for (name, value), plain in zip(
            found(make, objective, dtype, compute).items(),
            found(make, Greedy(), dtype, compute).values(),
            strict=True,
        )
    }


def found(
    make: Callable[[], tuple[nn.Module, nn.Module, Tensor, Tensor]],
    objective: Objective,
    dtype: torch.dtype,
    compute: ComputeOptions = PLAIN,
) -> dict[str, Tensor]:
    with seeded(0, "first order"), sdpa_kernel(SDPBackend.MATH):
        body, head, x, target = make()
        stage = make_stage(body.to(dtype), head.to(dtype), objective=objective, compute=compute)
        delta = torch.randn(x.shape).to(dtype) / ROWS
        stage.forward(x.to(dtype), reconciled=objective.wants_delta)
        stage.output_gradient(target)
        stage.reconcile(delta if objective.wants_delta else None)
        return gradients(stage)


def relative_error(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """L2, of all parameters together."""
    off = sum(float((ours[name] - exact[name]).square().sum()) for name in exact)
    size = sum(float(value.square().sum()) for value in exact.values())
    assert size > 0
    return float((off / size) ** 0.5)


@pytest.mark.parametrize("distance", list(DISTANCES))
@pytest.mark.parametrize("model", list(MAKERS))
def test_it_is_the_exact_gradient_in_float64(model: str, distance: str) -> None:
    make, d = MAKERS[model], DISTANCES.get(distance)
    exact = added_gradient(make, exact_form(d))
    ours = added_gradient(make, first_order(d))
    assert relative_error(ours, exact) < 1e-4


@pytest.mark.parametrize("model", list(MAKERS))
def test_it_is_nearly_the_exact_gradient_in_float32(model: str) -> None:
    make, d = MAKERS[model], DISTANCES.get("cosine")
    exact = added_gradient(make, exact_form(d))
    ours = added_gradient(make, first_order(d), dtype=torch.float32)
    assert relative_error({n: v.double() for n, v in ours.items()}, exact) < 0.02


@pytest.mark.parametrize("model", list(MAKERS))
def test_the_central_difference_of_all_rows_is_the_exact_gradient_too(model: str) -> None:
    make, d = MAKERS[model], DISTANCES.get("cosine")
    exact = added_gradient(make, exact_form(d))
    ours = added_gradient(make, first_order(d, fraction=0.999))
    assert relative_error(ours, exact) < 1e-4


def a_stage(objective: Objective, seed: int = 0) -> tuple[Stage, Tensor, Tensor, Tensor]:
    with seeded(0, "a stage"):
        body = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.Tanh())
        stage = make_stage(body.double(), nn.Linear(4, 3).double(), objective=objective, seed=seed)
        x, delta = torch.randn(8, 5).double(), torch.randn(8, 5).double()
        return stage, x, delta, torch.randint(3, (8,))


def test_a_part_of_the_rows_has_the_exact_gradient_for_its_mean() -> None:
    """Over many draws of two rows of eight; without BatchNorm rows do not depend on each other."""

    def mean(objective: Objective, draws: int) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for seed in range(draws):
            stage, x, delta, target = a_stage(objective, seed)
            stage.forward(x, reconciled=objective.wants_delta)
            stage.output_gradient(target)
            stage.reconcile(delta if objective.wants_delta else None)
            for name, value in gradients(stage).items():
                total[name] = total.get(name, 0) + value / draws
        return total

    plain = mean(Greedy(), 1)
    d = DISTANCES.get("cosine")
    exact = {n: v - plain[n] for n, v in mean(exact_form(d), 1).items()}
    draws = 300
    part = mean(first_order(d, fraction=0.25), draws)
    ours = {name: value - plain[name] for name, value in part.items()}
    assert relative_error(ours, exact) < 8 / draws**0.5  # two of eight rows scatter widely


def test_every_second_batch_with_twice_the_weight() -> None:
    d = DISTANCES.get("cosine")
    for every in (1, 2):
        stage, x, delta, target = a_stage(first_order(d, every=every))
        stage.forward(x, reconciled=True)
        stage.output_gradient(target)
        stage.reconcile(delta)
        once = gradients(stage)
        if every == 1:
            first = once
    plain_stage, x, delta, target = a_stage(Greedy())
    plain_stage.forward(x)
    plain_stage.output_gradient(target)
    plain_stage.reconcile(None)
    plain = gradients(plain_stage)
    for name, value in plain.items():
        torch.testing.assert_close(once[name] - value, 2 * (first[name] - value))


def test_without_delta_a_batch_is_trained_as_without_reconciliation() -> None:
    d = DISTANCES.get("cosine")
    results = []
    for objective in (first_order(d), Greedy()):
        stage, x, _, target = a_stage(objective)
        stage.forward(x)
        stage.output_gradient(target)
        stage.reconcile(None)
        results.append(gradients(stage))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_running_statistics_move_once_a_batch() -> None:
    d = DISTANCES.get("cosine")
    buffers = []
    for objective in (first_order(d), Greedy()):
        with seeded(0, "statistics"):
            body = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))
            stage = make_stage(body, nn.Linear(7, 3), objective=objective)
            x, delta, target = torch.randn(8, 5), torch.randn(8, 5), torch.randint(3, (8,))
        stage.forward(x, reconciled=objective.wants_delta)
        stage.output_gradient(target)
        stage.reconcile(delta if objective.wants_delta else None)
        buffers.append({name: value.clone() for name, value in body.named_buffers()})
    assert buffers[0].keys() == buffers[1].keys()
    assert all(torch.equal(buffers[0][name], buffers[1][name]) for name in buffers[0])


def test_gradients_that_agree_or_vanish_add_nothing() -> None:
    """At the distance's minimum its gradient is zero, and there is no direction to go."""
    stage, x, _, target = a_stage(first_order(DISTANCES.get("squared")))
    stage.forward(x, reconciled=True)
    stage.output_gradient(target)
    plain_stage, *_ = a_stage(Greedy())
    leaf = x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(plain_stage.head(plain_stage.body(leaf)), target)
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    stage.reconcile(leaf.grad)
    for name, value in gradients(stage).items():
        assert torch.isfinite(value).all(), name
        part, _, rest = name.partition(".")
        expected = getattr(plain_stage, part).get_parameter(rest).grad
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


def test_under_autocast_the_difference_is_formed_in_float32() -> None:
    """In bf16 the displacement, a thousandth of x, would be rounded away."""
    d = DISTANCES.get("cosine")

    def added() -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return added_gradient(gpt, first_order(d), dtype=torch.float32)

    exact = added_gradient(gpt, exact_form(d))
    assert relative_error({n: v.double() for n, v in added().items()}, exact) < 0.1


@pytest.mark.parametrize("fraction", [1.0, 0.999])
@pytest.mark.parametrize("model", ["cnn", "gpt"])
def test_a_stage_of_its_own_autocast_too(model: str, fraction: float) -> None:
    """Its passes leave autocast before reconciliation, which is told in another way."""
    d = DISTANCES.get("cosine")
    added = added_gradient(
        MAKERS[model],
        first_order(d, fraction=fraction),
        dtype=torch.float32,
        compute=BFLOAT16,
    )
    exact = added_gradient(MAKERS[model], exact_form(d))
    assert relative_error({n: v.double() for n, v in added.items()}, exact) < 0.1


def test_the_exact_form_is_lost_in_the_rounding_of_autocast() -> None:
    """Which is why it is refused: what it adds is rounded with the loss's own gradient."""
    d = DISTANCES.get("cosine")
    added = added_gradient(gpt, exact_form(d), dtype=torch.float32, compute=BFLOAT16)
    exact = added_gradient(gpt, exact_form(d))
    assert relative_error({n: v.double() for n, v in added.items()}, exact) > 0.5


class Checkpointed(nn.Module):
    """A block whose activations are made again in the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.block, x, use_reentrant=False)
        return out


def compiled(block: nn.Module) -> nn.Module:
    """Traced and differentiated ahead of time, without a compiler for C++."""
    return torch.compile(block, backend="aot_eager")  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("wrap", "fraction"),
    [
        (Checkpointed, 1.0),
        (Checkpointed, 0.5),
        (compiled, 0.5),
        pytest.param(compiled, 1.0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("model", ["vit", "gpt"])
def test_it_works_with_fused_attention_checkpointing_and_compilation(
    model: str, fraction: float, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    """Where there is no double backward; the result is that of the plain block."""

    def gradients_with(change: Callable[[nn.Module], nn.Module]) -> list[Tensor]:
        with seeded(0, "wrapped"):
            body, head, x, target = MAKERS[model]()
            for part in body.modules():
                if isinstance(part, nn.Dropout):
                    part.p = 0.0  # compiled code draws in an order of its own
                if isinstance(part, CausalAttention):
                    part._math = False
            delta = torch.randn(x.shape) / ROWS
        objective = first_order(DISTANCES.get("cosine"), fraction=fraction)
        stage = make_stage(change(body), head, objective=objective)
        stage.forward(x, reconciled=True)
        stage.output_gradient(target)
        stage.reconcile(delta)
        return list(gradients(stage).values())

    plain, other = gradients_with(lambda block: block), gradients_with(wrap)
    for one, two in zip(plain, other, strict=True):
        torch.testing.assert_close(two, one, rtol=2e-3, atol=1e-4)


def test_dropout_is_the_same_in_all_passes() -> None:
    """Else the difference of two masks, divided by the step, would drown the gradient."""
    with seeded(0, "dropout"):
        body = nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5), nn.Linear(64, 8))
        x, delta, target = torch.randn(6, 5), torch.randn(6, 5) / 6, torch.randint(3, (6,))
        head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))
    lengths = []
    for objective in (exact_form(DISTANCES.get("cosine")), first_order(DISTANCES.get("cosine"))):
        stage = make_stage(copy.deepcopy(body), copy.deepcopy(head), objective=objective)
        stage.forward(x, reconciled=True)
        stage.output_gradient(target)
        stage.reconcile(delta)
        lengths.append(torch.cat([g.flatten() for g in gradients(stage).values()]))
    torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-2, atol=1e-3)
