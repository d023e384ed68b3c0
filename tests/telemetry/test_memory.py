"""Bytes counted from tensors, on a network small enough to count by hand."""

import gc

import torch
from torch import Tensor, nn

from pipelocal.objective import DISTANCES, Greedy, Objective
from pipelocal.stage.memory import model_tensors, resident_bytes
from pipelocal.stage.stage import Stage
from pipelocal.telemetry.memory import SavedBytes, device_peak_bytes
from tests.objective.stages import make_stage, same_bits, sgr, weights

ROWS, INPUTS, WIDTH, CLASSES = 5, 8, 16, 4
FLOAT, INT = 4, 8


def _stage(objective: Objective | None = None, *, momentum: float = 0.0) -> Stage:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.Tanh())
    head = nn.Linear(WIDTH, CLASSES)
    return make_stage(body, head, objective=objective or Greedy(), momentum=momentum)


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, delta = (torch.randn(ROWS, INPUTS, generator=generator) for _ in range(2))
    return x, torch.arange(ROWS) % CLASSES, delta


def _count(stage: Stage) -> int:
    x, target, delta = _batch()
    saved = SavedBytes(model_tensors(stage))
    with saved.counting():
        stage.forward(x, reconciled=stage.wants_delta)
        stage.output_gradient(target)
        stage.reconcile(delta if stage.wants_delta else None)
    stage.update()
    return saved.peak_bytes


def test_counts_each_storage_once_and_no_parameters() -> None:
    expected = (
        ROWS * INPUTS * FLOAT  # the input, for the first layer's weight
        + ROWS * WIDTH * FLOAT  # tanh's output: its own backward and the head's weight share it
        + ROWS * CLASSES * FLOAT  # log-probabilities, for both halves of the cross entropy
        + ROWS * INT  # target
        + FLOAT  # total weight of the cross entropy
    )
    assert _count(_stage()) == expected


def test_views_of_one_storage_count_once_and_whole() -> None:
    saved = SavedBytes()
    base = torch.randn(6, 4)
    weight = torch.randn(2, 4, requires_grad=True)
    with saved.counting():
        (base[:3] @ weight.T).sum() + (base[3:] @ weight.T).sum()
    assert saved.peak_bytes == 6 * 4 * FLOAT


def test_what_was_let_go_counts_no_more() -> None:
    saved = SavedBytes()
    base = torch.ones(1000, requires_grad=True)
    with saved.counting():
        for _ in range(4):
            base * torch.randn(1000)  # gone at once
        assert saved.peak_bytes == 1000 * FLOAT
        kept = [base * torch.randn(1000) for _ in range(4)]
    assert saved.peak_bytes == 4 * 1000 * FLOAT
    assert len(kept) == 4


def test_a_second_pass_after_the_first_needs_no_more_than_the_larger() -> None:
    """First-order reconciliation runs its passes one after the other."""
    stage = _stage(sgr(DISTANCES.get("cosine"), 0.1, form="first-order"))
    plain = _count(_stage())
    x_and_more = 4 * ROWS * INPUTS * FLOAT
    assert plain <= _count(stage) <= plain + x_and_more


def test_nothing_saved() -> None:
    saved = SavedBytes()
    with saved.counting(), torch.no_grad():
        _stage().body(_batch()[0])
    torch.randn(3, requires_grad=True).exp()  # outside the block
    assert saved.peak_bytes == 0


def test_same_again() -> None:
    for objective in (None, sgr(DISTANCES.get("cosine"), 0.1)):
        stage = _stage(objective)
        first = _count(stage)
        torch.randn(1000)
        assert _count(stage) == first == _count(_stage(objective))


def test_exact_reconciliation_keeps_more() -> None:
    assert _count(_stage(sgr(DISTANCES.get("cosine"), 0.1))) > _count(_stage())


def test_counting_does_not_change_training() -> None:
    for distance in (None, *DISTANCES):
        found = []
        for count in (True, False):
            objective = sgr(DISTANCES.get(distance), 0.1) if distance else None
            stage = _stage(objective, momentum=0.9)
            x, target, delta = _batch()
            for _ in range(3):
                if count:
                    _count(stage)
                else:
                    stage.step(x, target, delta if stage.wants_delta else None)
            found.append(weights(stage))
        assert same_bits(*found)


def test_counting_keeps_no_tensor_afterwards() -> None:
    stage = _stage()
    gc.collect()
    gc.disable()
    try:
        x = torch.randn(29, INPUTS)
        saved = SavedBytes()
        with saved.counting():
            stage.forward(x)
            stage.output_gradient(torch.zeros(29, dtype=torch.int64))
            stage.reconcile(None)
        stage.update()
        left = [
            tuple(thing.shape)
            for thing in gc.get_objects()
            if issubclass(type(thing), Tensor) and 29 in thing.shape and thing is not x
        ]
        assert left == []
    finally:
        gc.enable()


def test_resident_bytes() -> None:
    parameters = (INPUTS * WIDTH + WIDTH + WIDTH * CLASSES + CLASSES) * FLOAT
    stage = _stage(momentum=0.9)
    assert resident_bytes(stage) == 2 * parameters  # with gradients
    _count(stage)
    assert resident_bytes(stage) == 3 * parameters  # and the momentum
    norm = make_stage(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES))
    parameters = (2 * WIDTH + WIDTH * CLASSES + CLASSES) * FLOAT
    buffers = 2 * WIDTH * FLOAT + INT
    assert resident_bytes(norm) == 2 * parameters + buffers


def test_no_device_peak_on_the_cpu() -> None:
    assert device_peak_bytes(torch.device("cpu")) is None
