"""Numbers that are none: NaN, infinity, lengths of zero, and options beyond every machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelocal import cli

MODELS = """
import torch
from torch import nn


def _net(first, classes):
    second = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
    return nn.Sequential(nn.Sequential(nn.Flatten(), *first), second, nn.Linear(8, classes))


def dead(_shape, classes):
    linear = nn.Linear(64, 8)
    nn.init.constant_(linear.bias, -1000.0)
    return _net([linear, nn.ReLU()], classes)


class Blanks(nn.Module):
    def forward(self, x):
        return x * (torch.arange(len(x)) % 2)[:, None]


def blank_rows(_shape, classes):
    return _net([nn.Linear(64, 8), Blanks()], classes)
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A file of models."""
    file = tmp_path / "models.py"
    file.write_text(MODELS)
    return file


@pytest.mark.parametrize(
    ("model", "distance", "fraction"),
    [("dead", "cosine", "0.5"), ("dead", "cosine", "1"), ("blank_rows", "relative", "0.5")],
)
def test_a_stage_whose_input_is_zero_diverged(
    models: Path, tmp_path: Path, model: str, distance: str, fraction: str
) -> None:
    """The displacement of first-order reconciliation was a share of the input's length: 0, and the
    weight over it infinite. The second batch's loss was NaN, with the default options.
    """
    out = tmp_path / "run"
    options = ["--stages", "2", "--max-steps", "4", "--batch-size", "32", "--lr", "0.01"]
    options += ["--reconcile-every", "1", "--reconcile-fraction", fraction, "--distance", distance]
    arguments = ["train", "--model", f"{models}:{model}", *options, "--out", str(out), "--plain"]
    assert cli.run(arguments) == 0
