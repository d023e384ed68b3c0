"""Snapshots that cannot be trusted are named, and not used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelocal.checkpoint.snapshot import BadSnapshot, SnapshotFolder, verify
from tests.interrupted import BASE, EVERY
from tests.test_transparency import assert_same_bits, train_alone


def _truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


def _flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def _edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


STAGE, MANIFEST = "stage-2.pt", "manifest.json"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "stage file gone": lambda at: (at / STAGE).unlink(),
    "stage file empty": lambda at: _truncate(at / STAGE, 0),
    "stage file one byte short": lambda at: _truncate(at / STAGE, (at / STAGE).stat().st_size - 1),
    "stage file torn in the middle": lambda at: _truncate(at / STAGE, 1000),
    "stage file longer": lambda at: (at / STAGE).open("ab").write(b"x"),
    "first bit flipped": lambda at: _flip(at / STAGE, 0.0),
    "bit in the middle flipped": lambda at: _flip(at / STAGE, 0.5),
    "last bit flipped": lambda at: _flip(at / STAGE, 1.0),
    "another stage's file": lambda at: shutil.copy(at / "stage-1.pt", at / STAGE),
    "the same stage of another step": lambda at: shutil.copy(
        at.parent / "step-00000010" / STAGE, at / STAGE
    ),
    "zeros": lambda at: (at / STAGE).write_bytes(bytes((at / STAGE).stat().st_size)),
    "text": lambda at: (at / STAGE).write_text("hello"),
    "stage file is a folder": lambda at: shutil.move(at / STAGE, at / "x") and (at / STAGE).mkdir(),  # type: ignore[func-returns-value]
    "manifest empty": lambda at: _truncate(at / MANIFEST, 0),
    "manifest torn": lambda at: _truncate(at / MANIFEST, 100),
    "manifest is no JSON": lambda at: (at / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "manifest is a list": lambda at: (at / MANIFEST).write_text("[]"),
    "manifest of another step": lambda at: shutil.copy(
        at.parent / "step-00000010" / MANIFEST, at / MANIFEST
    ),
    "manifest of another format": lambda at: _edit(at / MANIFEST, lambda c: c.update(format=99)),
    "manifest without files": lambda at: _edit(at / MANIFEST, lambda c: c.update(files=[])),
    "manifest without a stage": lambda at: _edit(at / MANIFEST, lambda c: c["files"].pop(1)),  # type: ignore[attr-defined]
    "manifest with another checksum": lambda at: _edit(
        at / MANIFEST,
        lambda c: c["files"][1].update(sha256="0" * 64),  # type: ignore[index]
    ),
    "manifest with more keys": lambda at: _edit(at / MANIFEST, lambda c: c.update(more=1)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_bad_snapshot_is_named_and_not_used(
    tmp_path: Path, stopped: Path, damage: Callable[[Path], object]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    newest = run / "snapshots" / "step-00000020"
    damage(newest)
    with pytest.raises(BadSnapshot, match="step-00000020"):
        verify(SnapshotFolder(run).at(20))
    assert verify(SnapshotFolder(run).at(10)).step == 10


def test_the_one_before_is_used(
    tmp_path: Path, stopped: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    _flip(run / "snapshots" / "step-00000020" / "stage-3.pt", 0.5)
    assert_same_bits(uninterrupted, train_alone([*BASE, *EVERY], run))
    lines = capsys.readouterr().err.splitlines()
    assert sum(
        "a snapshot is left out" in line and "stage-3.pt is damaged" in line for line in lines
    )
    assert any("going on after batch 10" in line for line in lines)
