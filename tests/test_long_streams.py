"""Streams of thousands of batches, a stage that is slow, and messages of 64 MiB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launching import run_ranks
from tests.test_transparency import assert_same_bits, train_alone

MODELS = Path(__file__).parent / "models_for_tests.py"
MIB = 2**20


def train_over_two(tmp_path: Path, model: str, options: list[str]) -> Path:
    out = tmp_path / "run"
    arguments = ["--model", f"{MODELS}:{model}", "--cut", "1,1"]
    arguments += ["--lr", "0.01" if model == "tiny" else "0.00001"]  # the others are wide
    arguments += ["--evaluate-every", "10000", "--epochs", "10000", *options]
    run_ranks(tmp_path / "log", ["train", *arguments, "--out", str(out)], 2)
    return out


def stages(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "summary.json").read_text())["stages"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 4])
def test_memory_does_not_grow_while_a_stage_is_slow(tmp_path: Path, window: int) -> None:
    """3000 batches of 1 MiB: what is queued is the window, not what the fast stage could make."""
    options = ["--batch-size", "16", "--max-steps", "3000", "--window", str(window)]
    short = ["--batch-size", "16", "--max-steps", "50", "--window", str(window)]
    long_run = stages(train_over_two(tmp_path / "long", "slow_second", options))
    short_run = stages(train_over_two(tmp_path / "short", "slow_second", short))
    for one, other in zip(long_run, short_run, strict=True):
        assert one["process_memory_bytes"] < other["process_memory_bytes"] + 100 * MIB
    assert long_run[0]["busy_fraction"] < 0.9  # it did wait for the slow one
    assert long_run[0]["sent_bytes"] > 3000 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["greedy", "sgr"])
def test_ten_thousand_small_batches(tmp_path: Path, objective: str) -> None:
    """Over two ranks as in one process, to the last bit."""
    options = ["--batch-size", "4", "--max-steps", "10000", "--objective", objective]
    over_ranks = train_over_two(tmp_path, "tiny", options)
    assert [stage["steps"] for stage in stages(over_ranks)] == [10_000, 10_000]
    arguments = ["--model", f"{MODELS}:tiny", "--cut", "1,1", "--lr", "0.01", *options]
    arguments += ["--evaluate-every", "10000", "--epochs", "10000"]
    assert_same_bits(train_alone(arguments, tmp_path / "alone"), over_ranks)


@pytest.mark.parametrize("objective", [pytest.param("greedy", marks=pytest.mark.slow), "sgr"])
def test_messages_of_64_mib(tmp_path: Path, objective: str) -> None:
    """x, and with it delta; evaluation too."""
    options = ["--batch-size", "16", "--max-steps", "4", "--objective", objective]
    run = train_over_two(tmp_path, "huge_messages", [*options, "--reconcile-every", "2"])
    first = stages(run)[0]
    assert first["steps"] == 4
    deltas = 2 if objective == "sgr" else 0
    assert first["sent_bytes"] > (4 + deltas) * 64 * MIB
