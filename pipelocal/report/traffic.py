"""The parts of a report on time, bytes and memory."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pipelocal.report.chart import bar_chart
from pipelocal.report.findings import busy_ranks
from pipelocal.report.markup import Html, joined, table, tag
from pipelocal.report.record import RunRecord
from pipelocal.report.timeline_chart import timeline_chart
from pipelocal.telemetry.formats import UNKNOWN, format_bytes, format_rate, or_unknown
from pipelocal.telemetry.timeline import COMPUTING, WAITING, Timeline


def time_spent(run: RunRecord) -> Html | None:
    """Return who computed and who waited; None if nothing is known."""
    parts = []
    busy = busy_ranks(run)
    if busy:
        bars = [
            (f"rank {rank}", [("b-body", share)], f"{share:.0%}")
            for rank, share in sorted(busy.items())
        ]
        said = ", ".join(f"{name} {behind}" for name, _, behind in bars)
        chart = bar_chart("Share of the time in which a rank computes", bars, said=said, whole=1.0)
        parts.append(tag("div", chart, class_="charts"))
        note = "On CUDA this is the host's time. A rank that does not compute waits for data or for an edge."
        parts.append(tag("p", note, class_="soft"))
    rows = [
        [
            str(stage.stage),
            str(seat.get("rank", UNKNOWN)),
            f"{seat['busy_fraction']:.0%}",
            format_rate(seat["samples_per_second"]),
        ]
        for stage in run.stages
        for seat in stage.seats
    ]
    if rows:
        columns = ("stage", "rank", "busy", "samples/s")
        parts.append(table("Time of every stage over the whole run", columns, rows))
    if run.timeline is not None:
        parts += [timeline_chart(run.timeline), _timeline_table(run.timeline)]
    elif not run.options.get("trace"):
        note = "A run with --trace also has a timeline here."
        parts.append(tag("p", note, class_="soft"))
    return joined(parts) if busy or run.timeline is not None else None


def _timeline_table(timeline: Timeline) -> Html:
    waits = ("wait for input", "hand over", "average")
    rows = [
        [
            str(stage.stage),
            str(stage.rank),
            *(f"{stage.ms[name]:.2f}" for name in (*COMPUTING, *WAITING)),
        ]
        for stage in timeline.stages
    ]
    columns = ("stage", "rank", *COMPUTING, *waits)
    parts = [table("Milliseconds of a training batch", columns, rows)]
    if timeline.edges_ms:
        under_way = [[edge, f"{ms:.2f}"] for edge, ms in sorted(timeline.edges_ms.items())]
        shown = table("Milliseconds of a batch under way", ("edge of ranks", "ms"), under_way)
        parts.append(shown)
    return joined(parts)


def bytes_and_memory(run: RunRecord) -> Html | None:
    """Return bytes of every edge, and memory of every stage and rank; None before the end."""
    if run.summary is None:
        return None
    finals = [stage.final for stage in run.stages]
    began_at = run.summary.get("began_at", 0)
    edges = []
    for sender, receiver in pairwise(run.stages):
        ours, theirs = sender.final, receiver.final
        back = theirs.get("backward_bytes", 0)
        same = set(sender.ranks) == set(receiver.ranks)
        edges.append(
            [
                f"{sender.stage} to {receiver.stage}",
                "one rank" if same else "between ranks",
                _exact(ours["sent_bytes"]),
                _exact(theirs["received_bytes"]),
                _exact(back),
                _a_batch(ours["sent_bytes"] + back, ours["steps"] - began_at),
            ]
        )
    columns = (
        "edge of stages",
        "where",
        "sent",
        "received",
        "sent back",
        "all of it a training batch",
    )
    parts = []
    if edges:
        caption = (
            "Bytes of tensors over each edge, evaluations included; in one rank, what would travel"
        )
        caption += f"; from batch {began_at} on, where the run went on" if began_at else ""
        parts.append(table(caption, columns, edges, text_columns=2))
    rows = [
        [
            str(stage.stage),
            str(seat.get("rank", UNKNOWN)),
            *(_size(seat, name) for name in MEMORY),
            _exact(seat.get("gradient_bytes", 0)),
        ]
        for stage in run.stages
        for seat in stage.seats
    ]
    names = ("stage", "rank", "stage, peak", "process", "device, peak", "bytes of replicas")
    caption = "Memory: counted for the stage in its first batch, of the whole process at the end"
    parts.append(table(caption, names, rows))
    bars = [
        (
            f"stage {final['stage']}",
            [("b-body", float(final.get("peak_memory_bytes") or 0))],
            _size(final, "peak_memory_bytes"),
        )
        for final in finals
    ]
    said = ", ".join(f"{name}: {behind}" for name, _, behind in bars)
    chart = bar_chart("Peak memory of every stage", bars, said=said)
    parts.append(tag("div", chart, class_="charts"))
    return joined(parts)


MEMORY = ("peak_memory_bytes", "process_memory_bytes", "device_peak_bytes")


def _size(figures: Mapping[str, Any], name: str) -> str:
    return or_unknown(format_bytes, figures.get(name))


def _exact(count: int) -> str:
    """Return bytes readable and exact: ``1.5 MiB (1,572,864)``."""
    return f"{format_bytes(count)} ({count:,})" if count >= 1024 else f"{count:,} B"


def _a_batch(count: int, steps: int) -> str:
    return format_bytes(count / steps) if steps else UNKNOWN
