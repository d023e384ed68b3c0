"""Updates of several batches that count differently: as one batch of all of them would be."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pipelocal.objective import Greedy
from pipelocal.stage.gradient_weights import GradientWeights
from pipelocal.stage.stage import Stage
from pipelocal.tasks import Classification, NextToken, Task

PADDING = -100
TOKENS, WIDTH, CLASSES = 4, 5, 3


def stage_of(task: Task, accumulate: int) -> Stage:
    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Linear(WIDTH, 6).double()), nn.Linear(6, CLASSES).double()
    parameters = [*body.parameters(), *head.parameters()]
    return Stage(
        number=1,
        body=body,
        head=head,
        objective=Greedy(),
        optimizer=torch.optim.SGD(parameters, lr=0.5),
        task=task,
        accumulate=accumulate,
    )


def weights(stage: Stage) -> list[Tensor]:
    return [p.detach().clone() for p in (*stage.body.parameters(), *stage.head.parameters())]


def padded(rows: int) -> tuple[Tensor, Tensor]:
    """Sequences of which the first has one token that counts, and the last row none at all."""
    x = torch.randn(rows, TOKENS, WIDTH, dtype=torch.float64)
    target = torch.arange(rows * TOKENS).view(rows, TOKENS) % CLASSES
    target[0, 1:] = PADDING
    target[-1] = PADDING
    return x, target


def rows_alone(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, WIDTH, dtype=torch.float64), torch.arange(rows) % CLASSES


CASES = {
    "padding": (NextToken(vocabulary=CLASSES, ignore_index=PADDING), padded),
    "uneven": (Classification(), rows_alone),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sizes", [(3, 4, 1), (1, 5), (4, 2)])
def test_an_update_of_several_batches_is_that_of_all_their_rows(
    case: str, sizes: tuple[int, ...]
) -> None:
    task, make = CASES[case]
    torch.manual_seed(1)
    x, target = make(sum(sizes))
    together, apart = stage_of(task, 1), stage_of(task, len(sizes))
    together.step(x, target)
    for part, labels in zip(*(torch.split(t, list(sizes)) for t in (x, target)), strict=True):
        apart.step(part, labels)
    for one, other in zip(weights(together), weights(apart), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_batches_in_which_nothing_counts_teach_nothing() -> None:
    """All of an update's, or some of them: no NaN, and the others count as they are."""
    task, make = CASES["padding"]
    x, target = make(3)
    nothing = torch.full_like(target, PADDING)
    stage = stage_of(task, 2)
    before = weights(stage)
    for labels in (nothing, nothing):
        stage.step(x, labels)
    assert all(map(torch.equal, before, weights(stage)))
    alone = stage_of(task, 1)
    alone.step(x, target)
    for order in itertools.permutations((target, nothing)):
        some = stage_of(task, 2)
        for labels in order:
            some.step(x, labels)
        for one, other in zip(weights(alone), weights(some), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_equal_weights_add_up_to_the_bits_of_a_sum() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    kept = GradientWeights()
    gradients = list(torch.randn(3, 3))
    for gradient in gradients:
        kept.add(7, lambda: [parameter])
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    assert parameter.grad is not None
    assert torch.equal(parameter.grad, gradients[0] + gradients[1] + gradients[2])
    assert kept.share(1, 3) == 3
    assert kept.share(2, 6) == 1.5
    assert kept.share(2, 1) == 0.5, "one replica's only batch, and none of the other's"


@pytest.mark.parametrize(("old", "last"), [(False, 2), (True, 4)])
def test_an_update_goes_on_from_a_snapshot_in_the_middle(old: bool, last: int) -> None:
    """Also from one of a version that added gradients up without weights."""
    task, make = CASES["uneven"]
    torch.manual_seed(1)
    batches = [make(rows) for rows in (4, 4, last)]

    def train(stage: Stage, which: Iterator[tuple[Tensor, Tensor]]) -> None:
        for x, target in which:
            stage.step(x, target)

    whole, first = stage_of(task, 3), stage_of(task, 3)
    train(whole, iter(batches))
    train(first, iter(batches[:2]))
    state = copy.deepcopy(first.training_state())
    if old:
        del state["weights"]
    second = stage_of(task, 3)
    second.load_training_state(state, steps=2, frozen_at=None)
    train(second, iter(batches[2:]))
    assert all(map(torch.equal, weights(whole), weights(second)))
