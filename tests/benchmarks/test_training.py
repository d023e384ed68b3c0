"""Runs of a benchmark that was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import training
from pipelocal.config import TrainConfig
from tests.interrupted import train_until


def test_a_run_that_was_stopped_goes_on_in_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was gone on with by --resume, which begins a run of its own: in runs/, where nobody looked."""
    config = TrainConfig(model="mlp", max_steps=20, snapshot_every=5, keep_snapshots=1, threads=1)
    folder = tmp_path / training._key(config)
    folder.mkdir()
    arguments = training.train_arguments(config, data_root=None)[3:]
    train_until(10, arguments, folder / "run", monkeypatch)
    assert not (folder / "run" / "summary.json").exists()
    ((index, run),) = training.train_each([config], jobs=1, keep=tmp_path)
    assert index == 0
    assert isinstance(run, training.Run)
    assert run.summary["steps"] == 20
    assert "going on after batch" in (folder / "log").read_text()


def test_a_run_is_known_again_wherever_its_files_lie() -> None:
    """Its command named the folder of a vocabulary, and the run was done again where that was another."""
    here, there = (
        TrainConfig(model="gpt", data="text", data_root=folder, tokenizer=f"{folder}/words.json")
        for folder in ("/here", "/there")
    )
    assert training._key(here) == training._key(there)
    assert training.command(here) == training.command(there)
    other = TrainConfig(model="gpt", data="text", tokenizer="/here/other.json")
    assert training._key(here) != training._key(other)
