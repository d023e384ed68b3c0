"""``--accumulate``: an update from the mean gradient of several batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.live_bytes import LiveBytes
from pipelocal.closed_form.stage import ClosedFormStage
from pipelocal.config import TrainConfig
from pipelocal.config.checks import validate
from pipelocal.errors import UserError
from pipelocal.objective.greedy import Greedy
from pipelocal.stage.lr_schedule import BatchLR
from pipelocal.stage.stage import Stage
from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, train_alone

ROWS, WIDTH = 12, 5


def a_stage(kind: type[Stage], accumulate: int, width: int = WIDTH) -> Stage:
    """One layer in float64, without BatchNorm, for which parts of a batch are not the batch."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Sequential(nn.Linear(width, width), nn.Tanh())).double()
    head = nn.Linear(width, 3).double()
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=0.01)
    schedule = BatchLR(optimizer, lambda batch: 1 / (1 + batch))
    return kind(
        number=1,
        body=body,
        head=head,
        objective=Greedy(),
        optimizer=optimizer,
        scheduler=schedule,
        accumulate=accumulate,
    )


def samples(rows: int = ROWS, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(rows) % 3


@pytest.mark.parametrize("kind", [Stage, ClosedFormStage])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_parts_of_a_batch_equal_the_batch(kind: type[Stage], parts: int) -> None:
    whole, stage = a_stage(kind, 1), a_stage(kind, parts)
    x, target = samples()
    whole.step(x, target)
    before = stage.body.state_dict()["0.0.weight"].clone()
    for i, (rows, labels) in enumerate(zip(x.chunk(parts), target.chunk(parts), strict=True)):
        stage.step(rows, labels)
        changed = not torch.equal(stage.body.state_dict()["0.0.weight"], before)
        assert changed == (i == parts - 1)
    for name, value in whole.body.state_dict().items():
        torch.testing.assert_close(stage.body.state_dict()[name], value, rtol=1e-12, atol=1e-14)


def test_the_rest_of_an_epoch_is_a_smaller_mean() -> None:
    whole, stage = a_stage(Stage, 1), a_stage(Stage, 4)
    x, target = samples()
    whole.step(x, target)
    for rows, labels in zip(x.chunk(2), target.chunk(2), strict=True):
        stage.step(rows, labels)
    stage.complete_update()
    stage.complete_update()  # nothing is left
    for name, value in whole.body.state_dict().items():
        torch.testing.assert_close(stage.body.state_dict()[name], value, rtol=1e-12, atol=1e-14)


def test_the_schedule_goes_by_batches() -> None:
    one, four = a_stage(Stage, 1), a_stage(Stage, 4)
    for stage in (one, four):
        for _ in range(8):
            stage.step(*samples())
    assert one.optimizer.param_groups[0]["lr"] == four.optimizer.param_groups[0]["lr"] == 0.5 / 9


def test_no_more_than_one_part_lives_at_once() -> None:
    peaks = []
    for parts in (1, 8):
        stage = a_stage(Stage, parts, width=64)
        x, target = samples(8192, 64)
        stage.step(x[:8], target[:8])
        stage.complete_update()
        with LiveBytes() as counter:
            for rows, labels in zip(x.chunk(parts), target.chunk(parts), strict=True):
                stage.step(rows, labels)
        peaks.append(counter.peak)
    assert peaks[1] < 0.2 * peaks[0]


@pytest.mark.parametrize("objective", [pytest.param("greedy", marks=pytest.mark.slow), "sgr"])
def test_ranks_equal_one_process(tmp_path: Path, objective: str) -> None:
    """Updates that do not divide an epoch's 23 batches, and a run that ends between two updates."""
    options = ["--objective", objective, "--stages", "4", "--max-steps", "26", "--accumulate", "4"]
    alone = train_alone(options, tmp_path / "alone")
    ranks = tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *options, "--out", str(ranks)], 2)
    assert_same_bits(alone, ranks)


def test_a_stage_frozen_between_two_updates_drops_what_it_gathered() -> None:
    stage = a_stage(Stage, 4)
    stage.step(*samples())
    before = stage.body.state_dict()["0.0.weight"].clone()
    stage.freeze()
    stage.complete_update()
    assert torch.equal(stage.body.state_dict()["0.0.weight"], before)
    assert all(parameter.grad is None for parameter in stage.body.parameters())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"accumulate": 0}, "--accumulate 0: must be at least 1"),
        (
            {"accumulate": 2, "objective": "sgr", "reconcile_fraction": 1.0},
            "--reconcile-fraction 1 forms a difference",
        ),
        ({"accumulate": 2, "step_early": True}, "--step-early is for updates after every batch"),
        ({"accumulate": 2, "measure_bp_gap": 4}, "--measure-bp-gap is for updates"),
    ],
)
def test_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        validate(TrainConfig(**options))
