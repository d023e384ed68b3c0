"""What every rank did, on one clock; what holds a pipeline up; what is told on a stall."""

from __future__ import annotations

import itertools
import json
import re
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from pipelocal import cli
from pipelocal.telemetry import actions
from pipelocal.telemetry.actions import Recorder
from pipelocal.telemetry.timeline import Timeline
from tests.launching import FOR_EVER, launch, lose_patience_at, run_ranks
from tests.test_transparency import assert_same_bits, train_alone

MODELS = Path(__file__).parents[1] / "models_for_tests.py"
STAGES = 3
STEPS = 24
OPTIONS = ["--model", "resnet8", "--stages", str(STAGES), "--max-steps", str(STEPS)]
OPTIONS += ["--objective", "sgr"]
ROUNDING_US = 0.01


def stage_events(events: list[dict[str, Any]]) -> dict[tuple[int, int, str], dict[str, Any]]:
    """The last action of a stage, batch and name."""
    return {
        (int(e["args"]["lane"].removeprefix("stage ")), e["args"]["batch"], e["name"]): e
        for e in events
        if e["ph"] == "X" and e["cat"] == "stage"
    }


def test_a_trace_of_real_ranks_on_one_clock(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_ranks(tmp_path, ["train", *OPTIONS, "--trace", "--plain", "--out", str(out)], STAGES)
    assert not (out / "trace").exists()
    trace = json.loads((out / "trace.json").read_text())
    assert trace["otherData"] == {"actions_left_out": 0}
    events = trace["traceEvents"]
    names = {e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    assert names == {"rank 0", "rank 1", "rank 2"}

    lanes: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in (e for e in events if e["ph"] == "X"):
        lanes[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert min(start for spans in lanes.values() for start, _ in spans) == 0
    stage_lanes = {(e["pid"], e["tid"]) for e in events if e.get("cat") == "stage"}
    for lane in stage_lanes:  # one thing after the other
        spans = sorted(lanes[lane])
        assert all(b[0] >= a[1] - ROUNDING_US for a, b in itertools.pairwise(spans))

    found = stage_events(events)
    batches = sorted({batch for _, batch, name in found if name == "forward"})
    assert len(batches) == STEPS
    reconciled = {batch for stage, batch, name in found if stage == 2 and name == "reconcile"}
    assert len(reconciled) == STEPS / 8
    for stage in range(1, STAGES + 1):
        for batch in batches:
            last = "reconcile" if stage > 1 and batch in reconciled else "backward"
            sends = ["send"] if stage < STAGES else []
            for name in ("receive", "forward", "head", last, "step", *sends):
                assert (stage, batch, name) in found
    for stage in range(1, STAGES):
        for batch in batches:
            made, taken = found[stage, batch, "forward"], found[stage + 1, batch, "forward"]
            assert taken["ts"] > made["ts"] + made["dur"], "used before it was made"


def test_a_trace_changes_no_bit(tmp_path: Path) -> None:
    out = tmp_path / "over-ranks"
    options = ["--model", "resnet8", "--stages", "2", "--max-steps", "9"]
    run_ranks(tmp_path, ["train", *options, "--trace", "--plain", "--out", str(out)], 2)
    assert_same_bits(train_alone(options, tmp_path / "alone"), out)


def test_the_timeline_names_the_slow_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["--model", f"{MODELS}:one_sleeps", "--stages", "3", "--batch-size", "16"]
    arguments += ["--max-steps", "60", "--lr", "0.01", "--evaluate-every", "1000"]
    arguments += ["--head", "linear"]
    run_ranks(tmp_path, ["train", *arguments, "--trace", "--plain", "--out", str(out)], 3)
    timeline = Timeline.of(out)
    first, second, _ = timeline.stages
    assert first.share("send") > 0.3, "the fast stage waits for room"
    assert second.computing_ms > first.computing_ms
    assert "rank 1 (stage 2) is the bottleneck" in timeline.verdict()
    assert set(timeline.edges_ms) == {"1 -> 2", "2 -> 3"}
    assert cli.run(["timeline", str(out)]) == 0
    assert "rank 1 (stage 2) is the bottleneck" in capsys.readouterr().out
    assert (out / "timeline.png").stat().st_size > 10_000


def test_one_process_is_told_to_use_more(tmp_path: Path) -> None:
    out = train_alone(["--model", "mlp", "--stages", "2", "--max-steps", "4", "--trace"], tmp_path)
    assert "one rank runs all stages" in Timeline.of(out).verdict()


def test_a_timeline_wants_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = train_alone(["--model", "mlp", "--max-steps", "2"], tmp_path / "run")
    assert cli.run(["timeline", str(out)]) == 2
    assert "train with --trace" in capsys.readouterr().err


def test_a_line_for_every_transfer(tmp_path: Path) -> None:
    arguments = ["train", "--model", "mlp", "--stages", "2", "--max-steps", "3", "--plain"]
    arguments += ["--objective", "greedy", "--debug-transfers", "--out", str(tmp_path / "run")]
    ranks = launch(tmp_path, arguments, 2)
    assert ranks.wait() == [0, 0], ranks.output()
    for rank, what in ((0, "send"), (1, "recv")):
        line = rf"^{what} 1 -> 2 \| batch 3 \| x \| [\d.e-]+ MB \| [\d.]+ ms$"
        assert len(re.findall(line, ranks.output(rank), re.MULTILINE)) == 1, ranks.output(rank)


def test_on_a_stall_every_rank_tells_what_it_did_last(tmp_path: Path) -> None:
    arguments = ["train", "--model", "mlp", "--stages", "3", "--epochs", "1000"]
    arguments += ["--timeout", str(FOR_EVER), "--plain", "--out", str(tmp_path / "run")]
    ranks = launch(tmp_path, arguments, 3, lambda _: lose_patience_at(tmp_path / "stopped"))
    ranks.wait_for_output(0, "1: loss")
    ranks.kill(1, signal.SIGSTOP)
    (tmp_path / "stopped").touch()
    ranks.wait((0, 2))
    ranks.kill(1)
    for rank, stage in ((0, 1), (2, 3)):
        output = ranks.output(rank)
        assert f"pipelocal (rank {rank}): last actions" in output
        assert re.search(
            rf"  stage {stage}: .*(send|receive|evaluate) \(batch \d+\) for [\d.]+ s", output
        )


def test_a_trace_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "TRACED", 3)
    recorder = Recorder(trace=True)
    for batch in range(5):
        recorder.begin("stage 1", "forward", batch).stop()
    assert [action.batch for action in recorder.traced()] == [0, 1, 2]
    assert recorder.left_out == 2


def test_without_a_trace_only_the_last_actions_are_kept() -> None:
    recorder = Recorder()
    for batch in range(100):
        recorder.begin("stage 1", "forward", batch).stop()
    assert recorder.traced() == []
    (line,) = recorder.last_actions()
    assert line.count("forward") == actions.LAST
    assert "forward (batch 100) done" in line
