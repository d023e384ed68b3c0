"""What a report says in plain words, and where it says nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelocal.report.findings import findings
from pipelocal.report.record import RunRecord
from pipelocal.telemetry.timeline import Timeline

Copied = Callable[..., Path]


def said(run: Path) -> str:
    return "\n".join(findings(RunRecord(str(run))))


def on_ranks(*busy: float) -> Callable[[dict[str, Any]], None]:
    """Have each stage run on a rank of its own, so busy."""

    def edit(summary: dict[str, Any]) -> None:
        summary["world_size"] = len(busy)
        for rank, stage in enumerate(summary["stages"]):
            stage.update(rank=rank, busy_fraction=busy[rank])

    return edit


def in_one_process(busy: float) -> Callable[[dict[str, Any]], None]:
    def edit(summary: dict[str, Any]) -> None:
        for stage in summary["stages"]:
            stage["busy_fraction"] = busy / len(summary["stages"])

    return edit


def test_a_trace_says_what_holds_the_run_up(made: Path) -> None:
    assert f"From the trace: {Timeline.of(made).verdict()}." in said(made)


def test_the_loader_where_one_process_waits_for_data(copied: Copied) -> None:
    assert "The loader is the bottleneck: the stages compute 30% of the time" in said(
        copied("slow", edit=in_one_process(0.3))
    )
    assert "The loader" not in said(copied("fast", edit=in_one_process(0.95)))


def test_a_stage_that_waits_most_of_its_time(copied: Copied) -> None:
    lines = said(copied("uneven", edit=on_ranks(0.3, 0.95, 0.6)))
    assert "rank 0 (stage 1) is busy 30%, while rank 1 (stage 2) sets the pace" in lines
    assert "rank 2" not in lines
    assert "waits most" not in said(copied("even", edit=on_ranks(0.9, 0.95, 0.85)))


def test_data_or_links_where_every_rank_waits(copied: Copied) -> None:
    lines = said(copied(edit=on_ranks(0.4, 0.3, 0.35)))
    assert "No rank is busy more than 40% of the time" in lines
    assert "waits most" not in lines


def test_an_earlier_head_that_is_better(copied: Copied) -> None:
    def best(stage: int) -> Callable[[dict[str, Any]], None]:
        return lambda summary: summary.update(best_head=stage)

    assert "An earlier head is better than the last one: the head of stage 2" in said(
        copied("earlier", edit=best(2))
    )
    assert "An earlier head" not in said(copied("last", edit=best(3)))


def test_a_stage_that_does_not_learn_and_a_loss_that_rises(copied: Copied) -> None:
    run = copied()
    assert "Not every stage learns" not in said(run)
    assert "has risen" not in said(run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["event"] == "train" and record["stage"] == 2:
            record["loss"] = 2.3 + record["step"] / 1000
    last = next(r for r in reversed(records) if r["event"] == "evaluate" and r["stage"] == 3)
    records.append({**last, "step": last["step"] + 10, "loss": 2 * last["loss"]})
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    lines = said(run)
    assert "Not every stage learns" in lines
    assert "in stage 2. Try another --lr" in lines
    assert "in stage 1" not in lines
    assert f"lowest after batch {last['step']}" in lines


def test_memory_that_is_uneven_over_ranks(copied: Copied) -> None:
    def edit(summary: dict[str, Any]) -> None:
        on_ranks(0.9, 0.9, 0.9)(summary)
        for stage, memory in zip(summary["stages"], (4096, 1024, 1024), strict=True):
            stage["peak_memory_bytes"] = memory

    assert "rank 0 (stage 1) needs 4.0 KiB, no other more than 1.0 KiB" in said(copied(edit=edit))
    assert "Memory" not in said(copied("one process"))


def test_the_error_that_ended_a_run(copied: Copied) -> None:
    run = copied()
    (run / "error-rank-1.txt").write_text(
        "Traceback ...\n  File\nZeroDivisionError: division by zero\n"
    )
    assert "A rank ended in an error: ZeroDivisionError: division by zero (error-rank-1" in said(
        run
    )
