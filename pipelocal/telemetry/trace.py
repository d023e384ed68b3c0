"""Writes a run's actions to a file for chrome://tracing and ui.perfetto.dev.

::

    runs/first/
      trace.json            all ranks, once the run has ended
      trace/rank-1.json     a rank's own part; stays if the run fails

The format is the Trace Event Format's "complete" events: a process for every rank, a thread for every
lane, times in microseconds of rank 0's clock. On CUDA these are host times: when work was
submitted to the device, not when the device did it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelocal.errors import UserError
from pipelocal.system.files import write_atomically
from pipelocal.system.strict_json import to_json
from pipelocal.telemetry.actions import Recorder


def write_part(folder: Path, rank: int, recorder: Recorder, clock_offset_s: float) -> None:
    """Write the actions of one rank.

    Args:
        folder: the run folder.
        rank: the rank.
        recorder: holds its actions.
        clock_offset_s: see :func:`~pipelocal.telemetry.clock.seconds_behind_rank_0`.
    """
    actions = recorder.traced()
    lanes = {lane: number for number, lane in enumerate(sorted({a.lane for a in actions}))}
    events: list[dict[str, Any]] = [_name("process_name", rank, 0, f"rank {rank}")]
    events += [_name("thread_name", rank, number, lane) for lane, number in lanes.items()]
    for action in actions:
        assert action.stopped is not None
        events.append(
            {
                "ph": "X",
                "name": action.name,
                "cat": "transfer" if action.bytes else "stage",
                "pid": rank,
                "tid": lanes[action.lane],
                "ts": 1e6 * (action.started + clock_offset_s),
                "dur": 1e6 * (action.stopped - action.started),
                "args": {"lane": action.lane, "batch": action.batch + 1, "bytes": action.bytes},
            }
        )
    part = {"events": events, "left_out": recorder.left_out}
    write_atomically(_part(folder, rank), to_json(part).encode())


def merge_parts(folder: Path, ranks: int) -> None:
    """Merge all ranks' parts into ``trace.json``, and delete the parts."""
    parts = [json.loads(_part(folder, rank).read_text()) for rank in range(ranks)]
    events = [event for part in parts for event in part["events"]]
    start = min((event["ts"] for event in events if event["ph"] == "X"), default=0.0)
    for event in events:
        if event["ph"] == "X":
            event["ts"] -= start
    trace = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"actions_left_out": sum(part["left_out"] for part in parts)},
    }
    write_atomically(folder / "trace.json", to_json(trace).encode())
    for rank in range(ranks):
        _part(folder, rank).unlink()
    (folder / "trace").rmdir()


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Read the actions of a run's trace: ``name``, ``ts`` and ``dur`` in microseconds, and ``args``.

    Raises:
        UserError: there is no trace, or it cannot be read.
    """
    path = folder / "trace.json"
    if not path.is_file():
        raise UserError(f"{folder} has no trace.json: train with --trace, to the end")
    try:
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        return [event for event in events if event["ph"] == "X"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged, or no trace: train again with --trace") from error


def _part(folder: Path, rank: int) -> Path:
    return folder / "trace" / f"rank-{rank}.json"


def _name(what: str, rank: int, lane: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": rank, "tid": lane, "args": {"name": name}}
