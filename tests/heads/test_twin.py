"""Twins of all that follows: each stage then trains as in back-propagation, in float64 to many digits."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import pipelocal
from pipelocal.models import Chain, Shape, Unit
from tests.launching import run_ranks
from tests.test_transparency import train_alone

CLOSE = 1e-10


class Block(nn.Module):
    """A convolution with BatchNorm, in float64 whatever it is given: ``[B, I, H, W]`` to ``[B, O, H, W]``."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(x.double())))


class Classifier(nn.Linear):
    """Mean over space and a linear map, in float64."""

    def __init__(self, classes: int) -> None:
        super().__init__(6, classes, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean((2, 3)))


def doubles(input_shape: Shape, classes: int) -> Chain:
    """Five units in float64, one of which halves the size."""
    sizes = ((input_shape[0], 4, 1), (4, 4, 1), (4, 6, 2), (6, 6, 1), (6, 6, 1))
    units = [
        Unit(name=f"unit{number}", build=partial(Block, *size))
        for number, size in enumerate(sizes, start=1)
    ]
    classifier = Unit(name="classifier", build=partial(Classifier, classes))
    return Chain(units, classifier=classifier, input_shape=input_shape, classes=classes)


COMMON = ["--model", f"{__file__}:doubles", "--max-steps", "9", "--lr", "0.05"]


def found(run: Path) -> tuple[dict[str, Tensor], list[float]]:
    """The trained network's weights, and the loss of its own classifier in every batch and evaluation."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = max(record.get("stage", 1) for record in records)
    losses = [r["loss"] for r in records if "loss" in r and r.get("stage", 1) == last]
    return pipelocal.load(str(run)).state_dict(), losses


def furthest(run: Path, other: Path) -> float:
    """The largest distance of any weight, statistic or loss."""
    (ours, losses), (theirs, their_losses) = found(run), found(other)
    assert ours.keys() == theirs.keys()
    assert len(losses) == len(their_losses) > 1
    assert all(value.dtype in (torch.float64, torch.int64) for value in ours.values())
    return max(
        *(float((value - theirs[name]).abs().max()) for name, value in ours.items()),
        *(abs(a - b) for a, b in zip(losses, their_losses, strict=True)),
    )


def alone(folder: Path, *options: str) -> Path:
    return train_alone([*COMMON, *options], folder)


def test_three_ranks_with_full_twins_train_as_back_propagation_does(tmp_path: Path) -> None:
    """With twins of one unit alone, or with copies that start anew, it is another training."""
    one = alone(tmp_path / "bp", "--objective", "bp")
    staged = ["--objective", "greedy", "--stages", "3", "--head"]
    out = tmp_path / "ranks"
    run_ranks(tmp_path / "log", ["train", *COMMON, *staged, "twin=all", "--out", str(out)], size=3)
    assert furthest(one, out) < CLOSE
    for other in ("twin=1", "downstream=all"):
        assert furthest(one, alone(tmp_path / other, *staged, other)) > 1e-3


def test_and_so_do_stages_in_one_process_that_accumulate_and_recompute(tmp_path: Path) -> None:
    options = ["--accumulate", "3", "--checkpoint-activations", "1"]
    one = alone(tmp_path / "bp", *options, "--objective", "bp")
    staged = ["--objective", "greedy", "--stages", "3", "--head", "twin=all"]
    assert furthest(one, alone(tmp_path / "stages", *options, *staged)) < CLOSE
