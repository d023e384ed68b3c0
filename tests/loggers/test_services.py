"""TensorBoard's and Weights & Biases' own readers find what metrics.jsonl holds; each needs its package."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interrupted import BASE, EVERY, train_until
from tests.loggers.test_loggers import metrics_of
from tests.test_transparency import train_alone


def curves_of(run: Path) -> dict[tuple[str, int, int], float]:
    """The local loss of every stage by event, stage and step."""
    return {
        (r["event"], r["stage"], r["step"]): r["loss"]
        for r in metrics_of(run)
        if r["event"] in ("train", "evaluate")
    }


def parts_of(content: bytes) -> Iterator[bytes]:
    """The parts of a file in LevelDB's format of logs, behind 7 bytes of wandb's own."""
    block, place, whole = 32 * 1024, 7, b""
    while place + 7 <= len(content):
        if block - place % block < 7:  # too little for another header
            place += block - place % block
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def goes_on(name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends 8 batches after a snapshot, and goes on with the same logger."""
    arguments = [*BASE, "--objective", "greedy", *EVERY, "--log", name]
    train_until(38, arguments, out, monkeypatch)
    assert max(step for _, _, step in curves_of(out)) > 30
    train_alone(arguments, out)


def test_tensorboard_reads_every_figure_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    goes_on("tensorboard", tmp_path / "run", monkeypatch)
    reader: Any = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    reader.Reload()
    expected = curves_of(tmp_path / "run")
    found = [
        ((event, stage, point.step), point.value)
        for event, name in (("train", "loss"), ("evaluate", "eval_loss"))
        for stage in (1, 2, 3)
        for point in reader.Scalars(f"{name}/stage-{stage}")
    ]
    assert Counter(key for key, _ in found) == Counter(expected.keys())
    for key, value in found:
        assert value == pytest.approx(expected[key], rel=1e-6), "float32 in the file"
    tags = set(reader.Tags()["scalars"])
    assert {"learning_rate/stage-3", "sent_bytes/stage-1", "final/eval_accuracy/stage-2"} <= tags


def test_wandb_offline_logs_every_figure_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    goes_on("wandb", out, monkeypatch)
    found: list[tuple[tuple[str, int, int], float]] = []
    ids = set()
    for file in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for data in parts_of(file.read_bytes()):
            record: Any = Record()
            record.ParseFromString(data)
            ids |= {record.run.run_id} - {""}
            row = {
                item.key or item.nested_key[0]: float(item.value_json)
                for item in record.history.item
                if not (item.key or item.nested_key[0]).startswith("_")
            }
            for event, name in (("train", "loss"), ("evaluate", "eval_loss")):
                for stage in (1, 2, 3):
                    if (value := row.get(f"{name}/stage-{stage}")) is not None:
                        found.append(((event, stage, int(row["batch"])), value))
    expected = curves_of(out)
    assert len(ids) == 1, "one run of the service"
    assert Counter(key for key, _ in found) == Counter(expected.keys())
    assert dict(found) == expected
