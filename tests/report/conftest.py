"""A small run of everything that a report shows, and copies of it that tests may change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_transparency import train_alone

HOSTILE = "<script src=x onload=alert(1)>&amp;'\""
"""Name of a unit."""

MODEL = f"""
from collections import OrderedDict
from torch import nn

def net(shape, classes):
    units = OrderedDict(stem=nn.Flatten(), first=nn.Sequential(nn.Linear(64, 32), nn.ReLU()))
    units[{HOSTILE!r}] = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
    units["third"] = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
    units["out"] = nn.Linear(32, classes)
    return nn.Sequential(units)
"""

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A traced run in one process, in a folder with a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    model = folder / "mine.py"
    model.write_text(MODEL)
    arguments = f"--model {model}:net --stages 3 --max-steps 30 --log-every 4 --lr 0.02 --trace"
    arguments += " --objective sgr"  # whose agreement has a section of its own
    return train_alone(arguments.split(), folder / "<b>run & co")


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the run, with a changed summary, without its trace."""

    def copy(name: str = "copy", *, edit: Edit | None = None, trace: bool = False) -> Path:
        run = tmp_path / name
        shutil.copytree(made, run)
        if not trace:
            (run / "trace.json").unlink()
        if edit is not None:
            path = run / "summary.json"
            summary = json.loads(path.read_text())
            edit(summary)
            path.write_text(json.dumps(summary))
        return run

    return copy
